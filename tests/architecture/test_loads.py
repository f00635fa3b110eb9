"""Does transformers load what was merged, with nothing missing and nothing left over?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

import mergeloom

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
         "num_hidden_layers": 4, "pad_token_id": 0}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "llama_tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=4, n_head=2, n_positions=32),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=8,
                               layer_types=["sliding_attention", "full_attention"] * 2),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1),
    "bert": BertConfig(**SIZES, max_position_embeddings=32),
}  # fmt: skip


def auto(kind: str) -> Any:
    return AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints of each kind, as transformers writes them."""
    transformers.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("hf")
    for kind, config in CONFIGS.items():
        for seed, name in enumerate("AB"):
            torch.manual_seed(seed)
            auto(kind).from_config(config).save_pretrained(folder / kind / name)
    return folder


def load(path: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    model, found = auto(kind).from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert {k: list(v) for k, v in found.items() if v} == {}
    return model.eval(), found


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(7)
    ids = torch.randint(1, 40, (2, 20))
    with torch.no_grad():
        return model(input_ids=ids).logits


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_linear_merge_computes_what_the_averaged_weights_compute(kind, folder, tmp_path):
    a, b = folder / kind / "A", folder / kind / "B"
    mergeloom.merge(
        {"merge_method": "linear", "models": [{"model": str(a), "parameters": {"weight": 0.25}},
                                              {"model": str(b), "parameters": {"weight": 0.75}}]},
        tmp_path / "out",
    )  # fmt: skip
    merged, _ = load(tmp_path / "out", kind)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (a / "config.json").read_text()
    )
    by_hand, _ = load(a, kind)
    second, _ = load(b, kind)
    state, other = by_hand.state_dict(), second.state_dict()
    by_hand.load_state_dict(
        {n: 0.25 * t + 0.75 * other[n] if t.is_floating_point() else t for n, t in state.items()}
    )
    torch.testing.assert_close(logits(merged), logits(by_hand), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_stack_computes_what_its_layers_compute(kind, folder, tmp_path):
    """Compared with the layers of the loaded models, put together by hand."""
    a, b = folder / kind / "A", folder / kind / "B"
    mergeloom.merge(
        {"merge_method": "passthrough", "slices": [
            {"sources": [{"model": str(a), "layer_range": [0, 3]}]},
            {"sources": [{"model": str(b), "layer_range": [1, 4]}]},
        ]},
        tmp_path / "out",
    )  # fmt: skip
    merged, _ = load(tmp_path / "out", kind)
    first, last = load(a, kind)[0], load(b, kind)[0]
    assert {i for i, _ in map(place, merged.state_dict()) if i is not None} == set(range(6))
    kinds = getattr(merged.config, "layer_types", None)
    if kinds:
        theirs = first.config.layer_types
        assert kinds == [theirs[i] for i in (0, 1, 2, 1, 2, 3)]
    for name, value in merged.state_dict().items():
        index, pattern = place(name)
        if CONFIGS[kind].tie_word_embeddings and pattern.startswith(("lm_head", "cls.")):
            continue  # the embedding under a second name
        early = any(w in name for w in ("embed", "wte", "wpe")) if index is None else index < 3
        old = index if index is None or index < 3 else index - 2
        source = (first if early else last).state_dict()
        assert torch.equal(value, source[pattern.format(old)]), name
    assert torch.isfinite(logits(merged)).all()


def place(name: str) -> tuple[int | None, str]:
    """The layer of a tensor, and its name with the layer's number left open."""
    parts = name.split(".")
    at = next((i for i, p in enumerate(parts) if p.isdigit()), None)
    if at is None:
        return None, name
    index, parts[at] = int(parts[at]), "{}"
    return index, ".".join(parts)


def test_a_tied_and_an_untied_model_give_an_untied_one(folder, tmp_path):
    for names in (("llama", "llama_tied"), ("llama_tied", "llama")):
        paths = [folder / names[0] / "A", folder / names[1] / "B"]
        out = tmp_path / names[0]
        mergeloom.merge(
            {"merge_method": "linear", "parameters": {"weight": 1},
             "models": [{"model": str(p)} for p in paths]},
            out,
        )  # fmt: skip
        merged, _ = load(out, "llama")
        assert merged.config.tie_word_embeddings is False
        inputs = [tensors(p) for p in paths]
        embedding = "model.embed_tokens.weight"
        head = sum(t.get("lm_head.weight", t[embedding]) for t in inputs) / 2
        torch.testing.assert_close(merged.lm_head.weight.data, head)
        torch.testing.assert_close(merged.get_input_embeddings().weight.data,
                                   sum(t[embedding] for t in inputs) / 2)  # fmt: skip


def test_two_tied_models_stay_tied(folder, tmp_path):
    mergeloom.merge(
        {"merge_method": "slerp", "base_model": str(folder / "llama_tied" / "A"),
         "parameters": {"t": 0.5}, "dtype": "bfloat16",
         "models": [{"model": str(folder / "llama_tied" / n)} for n in "AB"]},
        tmp_path / "out",
    )  # fmt: skip
    merged, _ = load(tmp_path / "out", "llama_tied")
    assert merged.config.tie_word_embeddings is True
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "lm_head.weight" not in tensors(tmp_path / "out")
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}

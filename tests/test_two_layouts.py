"""Two layouts of one model: merging them is merging them after one was converted.

The conversions are written here with torch's own words, and those of Mixtral and LLaVA are checked
against what transformers loads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save
from safetensors.torch import load_file

import mergeloom
from mergeloom import Options

H, F, E = 6, 4, 3  # hidden, expert's inner size, experts
Tensors = dict[str, torch.Tensor]


def mixture(seed: int) -> Tensors:
    """Mixtral as the hub has it: one tensor for each expert and projection."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (16, H), "model.norm.weight": (H,),
              "lm_head.weight": (16, H)}  # fmt: skip
    for i in range(2):
        here = f"model.layers.{i}"
        shapes |= {f"{here}.self_attn.{p}_proj.weight": (n, H)
                   for p, n in (("q", H), ("k", 2), ("v", 2))}  # fmt: skip
        shapes[f"{here}.self_attn.o_proj.weight"] = (H, H)
        shapes[f"{here}.input_layernorm.weight"] = (H,)
        shapes[f"{here}.block_sparse_moe.gate.weight"] = (E, H)
        for e in range(E):
            shapes |= {f"{here}.block_sparse_moe.experts.{e}.{w}.weight": s
                       for w, s in (("w1", (F, H)), ("w2", (H, F)), ("w3", (F, H)))}  # fmt: skip
    return {n: torch.randn(s, generator=random) for n, s in shapes.items()}


CONFIG = {"model_type": "mixtral", "num_hidden_layers": 2, "vocab_size": 16}


def separate(tensors: Tensors) -> Tensors:
    """Qwen's words for the same."""
    words = {"block_sparse_moe": "mlp", ".w1.": ".gate_proj.", ".w2.": ".down_proj.",
             ".w3.": ".up_proj."}  # fmt: skip
    return {_replaced(n, words): t for n, t in tensors.items()}


def packed(tensors: Tensors, *, turn: bool = False, alternate: bool = False) -> Tensors:
    """All experts in two tensors, as transformers 5 keeps them; gate above up."""
    made = {n: t for n, t in separate(tensors).items() if "experts" not in n}
    for i in range(2):
        old, new = f"model.layers.{i}.block_sparse_moe.experts", f"model.layers.{i}.mlp.experts"
        up = []
        for e in range(E):
            both = [tensors[f"{old}.{e}.w{k}.weight"] for k in (1, 3)]
            up.append(torch.stack(both, 1).flatten(0, 1) if alternate else torch.cat(both))
        down = [tensors[f"{old}.{e}.w2.weight"] for e in range(E)]
        made[f"{new}.gate_up_proj"] = torch.stack([t.T if turn else t for t in up])
        made[f"{new}.down_proj"] = torch.stack([t.T if turn else t for t in down])
    return made


def fused_attention(tensors: Tensors) -> Tensors:
    """q, k and v in one matrix, as Phi-3 has them."""
    made = {n: t for n, t in tensors.items() if not any(f".{p}_proj" in n for p in "qkv")}
    for i in range(2):
        here = f"model.layers.{i}.self_attn"
        parts = [tensors[f"{here}.{p}_proj.weight"] for p in "qkv"]
        made[f"{here}.qkv_proj.weight"] = torch.cat(parts)
    return made


def _replaced(name: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        name = name.replace(old, new)
    return name


def llama4(tensors: Tensors) -> Tensors:
    return packed(tensors, turn=True)


def gpt_oss(tensors: Tensors) -> Tensors:
    return packed(tensors, turn=True, alternate=True)


LAYOUTS: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any]]] = {
    "hub": (dict, CONFIG),
    "qwen's words": (separate, CONFIG),
    "packed": (packed, CONFIG),
    "transposed": (llama4, {**CONFIG, "model_type": "llama4_text"}),
    "interleaved": (gpt_oss, {**CONFIG, "model_type": "gpt_oss"}),
    "fused qkv": (fused_attention, CONFIG),
}
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.6, "weight": 1}},
}


def merged(folder: Path, recipe: dict[str, Any], names: list[str], out: str) -> Tensors:
    models = [{"model": str(folder / n), "parameters": {"weight": w}}
              for n, w in zip(names, (1, 2), strict=True)]  # fmt: skip
    recipe = {"parameters": {}, **recipe, "models": models, "base_model": str(folder / names[0])}
    mergeloom.merge(recipe, folder / out, options=Options(allow_crimes=True))
    return load_file(folder / out / "model.safetensors")


@pytest.mark.parametrize("donor", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
def test_merging_two_layouts_is_merging_after_conversion(donor, other, tmp_path):
    (ours, config), (theirs, other_config) = LAYOUTS[donor], LAYOUTS[other]
    a, b = mixture(0), mixture(1)
    save(tmp_path / "a", ours(a), config)
    save(tmp_path / "b", theirs(b), other_config)
    save(tmp_path / "converted", ours(b), config)
    got = merged(tmp_path, RECIPES["linear"], ["a", "b"], "got")
    wanted = merged(tmp_path, RECIPES["linear"], ["a", "converted"], "wanted")
    assert got.keys() == ours(a).keys() == wanted.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, wanted[name]), name
        torch.testing.assert_close(tensor, (ours(a)[name] + 2 * ours(b)[name]) / 3)


TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 2, "head_dim": 8, "pad_token_id": 0,
        "tie_word_embeddings": False}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
           "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
CLIP = {"hidden_size": 12, "intermediate_size": 10, "num_attention_heads": 2,
        "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}  # fmt: skip


def transformers_config(kind: str) -> Any:
    import transformers as t

    if kind == "mixtral":
        return t.MixtralConfig(**TEXT, num_local_experts=3)
    if kind == "qwen3_moe":
        return t.Qwen3MoeConfig(**{**TEXT, **EXPERTS})
    text, vision = t.LlamaConfig(**TEXT), t.CLIPVisionConfig(**CLIP)
    return t.LlavaConfig(text_config=text, vision_config=vision)


def auto(kind: str) -> Any:
    import transformers as t

    is_text = kind in ("mixtral", "qwen3_moe")
    return t.AutoModelForCausalLM if is_text else t.AutoModelForImageTextToText


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """Two models of a kind, each in the layout of the hub and in that of transformers' modules."""
    import transformers

    transformers.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("saved")

    def save_both(kind: str) -> Path:
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            model = auto(kind).from_config(transformers_config(kind))
            model.save_pretrained(folder / kind / f"{name}-hub")
            model.save_pretrained(folder / kind / f"{name}-own", save_original_format=False)
        return folder / kind

    return save_both


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "llava"])
def test_what_transformers_writes_in_two_ways(kind, saved):
    folder = saved(kind)
    hub, own = (load_file(folder / f"a-{way}" / "model.safetensors") for way in ("hub", "own"))
    assert hub.keys() != own.keys()
    for donor, other in (("hub", "own"), ("own", "hub")):
        recipe = RECIPES["ties"]
        mixed = merged(folder, recipe, [f"a-{donor}", f"b-{other}"], f"mixed-{donor}")
        same = merged(folder, recipe, [f"a-{donor}", f"b-{donor}"], f"same-{donor}")
        assert mixed.keys() == (hub if donor == "hub" else own).keys()
        for name, tensor in mixed.items():
            assert torch.equal(tensor, same[name]), name
        _, found = auto(kind).from_pretrained(folder / f"mixed-{donor}", output_loading_info=True)
        assert {k: list(v) for k, v in found.items() if v} == {}

"""A text model merged into the text part of a vision-language model, and back.

The reference is written with transformers' own modules, so it knows no tensor names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

import mergeloom

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
         "num_key_value_heads": 1, "num_hidden_layers": 3, "head_dim": 8, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}  # fmt: skip
VISION = {"hidden_size": 12, "intermediate_size": 10, "num_attention_heads": 2,
          "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
QWEN_VISION = {"depth": 2, "hidden_size": 12, "intermediate_size": 10, "num_heads": 2,
               "out_hidden_size": 16, "patch_size": 4, "spatial_merge_size": 1}  # fmt: skip
GEMMA = {
    **SIZES,
    "tie_word_embeddings": True,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
}
QWEN_TEXT = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                          "mrope_section": [2, 1, 1]}}  # fmt: skip

PAIRS: dict[str, tuple[Any, Any]] = {
    "llava": (LlamaConfig(**SIZES), LlavaConfig(
        text_config=LlamaConfig(**SIZES), vision_config=CLIPVisionConfig(**VISION))),
    "mistral3": (MistralConfig(**SIZES), Mistral3Config(
        text_config=MistralConfig(**SIZES), tie_word_embeddings=False,
        vision_config=PixtralVisionConfig(**VISION, head_dim=4))),
    "gemma3": (Gemma3TextConfig(**GEMMA), Gemma3Config(
        text_config=Gemma3TextConfig(**GEMMA), vision_config=SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4)),
    "qwen2_5_vl": (Qwen2Config(**SIZES), Qwen2_5_VLConfig(
        text_config=QWEN_TEXT, vision_config={**QWEN_VISION, "fullatt_block_indexes": [1]},
        tie_word_embeddings=False)),
    "qwen3_vl": (Qwen3Config(**SIZES), Qwen3VLConfig(
        text_config=QWEN_TEXT, vision_config={**QWEN_VISION, "num_position_embeddings": 4,
                                              "deepstack_visual_indexes": [0]},
        tie_word_embeddings=False)),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every vision-language model and a text model of the same sizes."""
    transformers.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("pairs")
    for kind, (text, vision) in PAIRS.items():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(vision).save_pretrained(folder / kind / "vlm")
        AutoModelForCausalLM.from_config(text).save_pretrained(folder / kind / "text")
    return folder


def loaded(auto: Any, path: Path) -> Any:
    model, found = auto.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert {k: list(v) for k, v in found.items() if v} == {}
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        return model(input_ids=torch.randint(5, 38, (2, 9))).logits


def mixed(into: Any, other: Any, weight: float) -> None:
    """Move the text part of ``into`` towards ``other``; both are transformers' models."""
    parts = [(getattr(into.model, "language_model", into.model),
              getattr(other.model, "language_model", other.model))]  # fmt: skip
    if into.lm_head.weight is not into.get_input_embeddings().weight:
        parts.append((into.lm_head, other.lm_head))
    with torch.no_grad():
        for ours, theirs in parts:
            found = dict(theirs.named_parameters())
            for name, value in ours.named_parameters():
                value += weight * (found.pop(name) - value)
            assert found == {}


AT_TOP = "models: [{{model: {text}, parameters: {{weight: 0.3}}}}]"
IN_MODULE = "modules: {{text_decoder: {{" + AT_TOP + "}}}}"


@pytest.mark.parametrize("form", [AT_TOP, IN_MODULE], ids=["models", "modules"])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_text_model_goes_into_the_text_part_and_the_tower_stays(kind, form, folder, tmp_path):
    vlm, text = folder / kind / "vlm", folder / kind / "text"
    recipe = f"merge_method: task_arithmetic\nbase_model: {vlm}\n{form.format(text=text)}\n"
    done = mergeloom.merge(recipe, tmp_path / "out")
    merged = loaded(AutoModelForImageTextToText, tmp_path / "out")
    by_hand = loaded(AutoModelForImageTextToText, vlm)
    mixed(by_hand, loaded(AutoModelForCausalLM, text), 0.3)
    wanted = by_hand.state_dict()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-7, msg=name)
    torch.testing.assert_close(logits(merged), logits(by_hand))
    written, given = (json.loads((p / "config.json").read_text()) for p in (tmp_path / "out", vlm))
    assert written == given
    told = [str(w) for w in done.plan.warnings]
    if form == AT_TOP:
        kept = [t for t in told if "in no other model and copied unchanged" in t]
        assert len(kept) == 1
        assert not any("another kind" in t or "not used" in t for t in told)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_text_part_goes_into_a_text_model(kind, folder, tmp_path):
    vlm, text = folder / kind / "vlm", folder / kind / "text"
    recipe = {"merge_method": "linear", "base_model": str(text), "parameters": {"weight": 1},
              "models": [str(text), str(vlm)]}  # fmt: skip
    done = mergeloom.merge(recipe, tmp_path / "out")
    merged = loaded(AutoModelForCausalLM, tmp_path / "out")
    by_hand = loaded(AutoModelForCausalLM, text)
    mixed(by_hand, loaded(AutoModelForImageTextToText, vlm), 0.5)
    torch.testing.assert_close(logits(merged), logits(by_hand))
    assert set(done.plan.unused) == {str(vlm)}
    assert all("vis" in n or "projector" in n for n in done.plan.unused[str(vlm)])

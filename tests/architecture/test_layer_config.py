"""Does config.json tell the truth about layers that were picked, repeated or reordered?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import MODELS, VISION, H, Shapes, deepseek, layers, text

import mergeloom
from mergeloom.checkpoint import MemoryTensor
from mergeloom.planning import Plan, plan_opened
from mergeloom.types import Checkpoint

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


def stacked(
    shapes: Shapes, config: dict[str, Any], *ranges: tuple[int, int], module: str = "",
    other: tuple[Shapes, dict[str, Any]] | None = None,
) -> Plan:  # fmt: skip
    """The plan of slices of model A, and of model ``other`` for ranges after the first."""
    models = {"A": (shapes, config)} | ({"B": other} if other else {})
    names = ["A", *(["B"] if other else ["A"]) * len(ranges)]
    slices = [{"sources": [{"model": name, "layer_range": list(r)}]}
              for name, r in zip(names, ranges, strict=False)]  # fmt: skip
    body: dict[str, Any] = {"slices": slices}
    if module:
        body = {"modules": {module: body}}
    recipe = mergeloom.load_recipe({"merge_method": "passthrough", **body})
    before = copy.deepcopy(models)
    opened = {
        reference: Checkpoint(str(reference), Path(), {
            n: MemoryTensor(torch.empty(s)) for n, s in models[str(reference)][0].items()
        }, models[str(reference)][1])
        for reference in recipe.models()
    }  # fmt: skip
    plan = plan_opened(recipe, opened)
    assert models == before
    return plan


def rewritten(config: dict[str, Any], *ranges: tuple[int, int], count: int = 6, **more: Any):
    """The output's config of a text model of ``count`` layers."""
    shapes = text("model", count)
    full = {**config, "num_hidden_layers": count, "vocab_size": 16}
    return stacked(shapes, full, *ranges, **more).config


RANGES = [(0, 4), (2, 6)]
PICKED = [0, 1, 2, 3, 2, 3, 4, 5]


def test_only_what_must_change_changes():
    config = {"model_type": "llama", "num_hidden_layers": 6, "zeta": {"num_hidden_layers": 3},
              "vocab_size": 16, "max_window_layers": 6, "unknown": [1, 2]}  # fmt: skip
    got = rewritten(config, *RANGES)
    assert got == {**config, "num_hidden_layers": 8}
    assert list(got) == list(config)


def test_explicit_lists_follow_their_layers():
    kinds = [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL]
    got = rewritten(
        {"model_type": "qwen3", "layer_types": kinds, "mlp_layer_types": list("abcdef"),
         "no_rope_layers": [1, 1, 0, 1, 1, 0], "intermediate_size": [1, 2, 3, 4, 5, 6],
         "hybrid_override_pattern": "M*-M*-", "eos_token_id": [1, 2]},
        *RANGES,
    )  # fmt: skip
    assert got["layer_types"] == [kinds[i] for i in PICKED]
    assert got["mlp_layer_types"] == ["abcdef"[i] for i in PICKED]
    assert got["no_rope_layers"] == [[1, 1, 0, 1, 1, 0][i] for i in PICKED]
    assert got["intermediate_size"] == [i + 1 for i in PICKED]
    assert got["hybrid_override_pattern"] == "".join("M*-M*-"[i] for i in PICKED)
    assert got["eos_token_id"] == [1, 2]


@pytest.mark.parametrize("key", ["moe_layers", "full_attn_idxs", "mlp_only_layers",
                                 "cross_attention_layers", "hybrid_layer_ids"])  # fmt: skip
def test_lists_of_layer_numbers_are_numbered_anew(key):
    got = rewritten({"model_type": "llama4", key: [1, 3, 5]}, *RANGES)
    assert got[key] == [j for j, i in enumerate(PICKED) if i in (1, 3, 5)]


def test_a_full_list_of_layer_numbers_is_not_taken_for_flags():
    got = rewritten({"moe_layers": [0, 1, 2, 3, 4, 5]}, *RANGES)
    assert got["moe_layers"] == list(range(8))


def test_settings_keyed_by_layer_numbers():
    config = {"per_layer_config": {"1": {"a": 1}, "4": {"a": 4}}, "id2label": {"0": "x", "1": "y"}}
    got = rewritten(config, *RANGES)
    assert got["per_layer_config"] == {"1": {"a": 1}, "6": {"a": 4}}
    assert got["id2label"] == config["id2label"]


DERIVED = [
    ({"model_type": "gemma2"}, [SLIDING, FULL] * 3),
    ({"model_type": "gpt_oss"}, [SLIDING, FULL] * 3),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, [SLIDING, SLIDING, FULL] * 2),
    ({"model_type": "gemma3_text"}, [SLIDING] * 5 + [FULL]),
    ({"model_type": "cohere2"}, [SLIDING] * 3 + [FULL] + [SLIDING] * 2),
    ({"model_type": "qwen3_next"}, [LINEAR] * 3 + [FULL] + [LINEAR] * 2),
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9,
      "max_window_layers": 3}, [FULL] * 3 + [SLIDING] * 3),
]  # fmt: skip


@pytest.mark.parametrize(("config", "kinds"), DERIVED, ids=lambda v: v.get("model_type", "")
                         if isinstance(v, dict) else "")  # fmt: skip
def test_a_pattern_that_a_class_derives_is_written_out(config, kinds):
    got = rewritten(config, (0, 3), (2, 6))
    assert got["layer_types"] == [kinds[i] for i in (0, 1, 2, 2, 3, 4, 5)]


@pytest.mark.parametrize("model_type", ["llama4_text", "smollm3"])
def test_rope_flags_that_a_class_derives_are_written_out(model_type):
    got = rewritten({"model_type": model_type}, *RANGES)
    assert got["no_rope_layers"] == [[1, 1, 1, 0, 1, 1][i] for i in PICKED]


def test_no_list_is_written_when_the_class_derives_the_right_one():
    assert "layer_types" not in rewritten({"model_type": "gemma2"}, (0, 2), (4, 6))
    assert "layer_types" not in rewritten({"model_type": "qwen2"}, *RANGES)


def test_uniform_layers_need_a_list_when_more_of_them_would_get_another_kind():
    """Five sliding layers of gemma 3 twice: by its position the sixth would be a full one."""
    got = rewritten({"model_type": "gemma3_text"}, (0, 5), (0, 5), count=5)
    assert got["layer_types"] == [SLIDING] * 10
    window = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9,
              "max_window_layers": 6}  # fmt: skip
    assert rewritten(window, *RANGES)["layer_types"] == [FULL] * 8


def test_each_source_brings_its_own_kinds():
    ours = {"model_type": "qwen3", "layer_types": [FULL] * 6}
    theirs = {"num_hidden_layers": 6, "vocab_size": 16, "model_type": "qwen3",
              "layer_types": [SLIDING, FULL] * 3}  # fmt: skip
    got = rewritten(ours, *RANGES, other=(text("model", 6), theirs))
    assert got["layer_types"] == [FULL] * 4 + [SLIDING, FULL] * 2


def test_nested_counts_of_a_vision_model():
    shapes, config = MODELS["llava"]
    config = {**config, "text_config": {**config["text_config"], "layer_types": ["a", "b", "c"]}}
    got = stacked(shapes, config, (0, 3), (1, 3)).config
    assert got["text_config"] == {"num_hidden_layers": 5, "vocab_size": 16,
                                  "layer_types": ["a", "b", "c", "b", "c"]}  # fmt: skip
    assert got["vision_config"] == config["vision_config"]


def test_the_vision_stack_can_be_sliced_by_its_module():
    shapes, config = MODELS["qwen2_vl"]
    config = {**config, "vision_config": {"depth": 2, "fullatt_block_indexes": [1]}}
    plan = stacked(shapes, config, (0, 2), (1, 2), module="vision")
    assert plan.config["vision_config"] == {"depth": 3, "fullatt_block_indexes": [1, 2]}
    assert plan.config["num_hidden_layers"] == 3
    names = {job.name for job in plan.jobs}
    assert {"visual.blocks.2.attn.qkv.weight", "model.layers.2.norm.weight"} <= names
    assert names - set(shapes) == set(layers("visual.blocks", 3, VISION | {
        "attn.qkv.weight": (1,), "norm1.weight": (1,)})) & names - set(shapes)  # fmt: skip


@pytest.mark.parametrize(("name", "module", "key"), [
    ("t5", "decoder", "num_decoder_layers"), ("t5", "encoder", "num_layers"),
    ("whisper", "decoder", "decoder_layers"), ("whisper", "encoder", "encoder_layers"),
])  # fmt: skip
def test_encoder_and_decoder_are_sliced_by_their_names(name, module, key):
    shapes, config = MODELS[name]
    ranges = ((0, 2), (1, 2))  # only T5's first layers have the bias: they must stay the first
    plan = stacked(shapes, config, *ranges, module=module)
    assert plan.config[key] == sum(b - a for a, b in ranges)
    other = {"num_decoder_layers", "num_layers", "decoder_layers", "encoder_layers"} - {key}
    assert all(plan.config[k] == config[k] for k in other & set(config))
    with pytest.raises(mergeloom.MergeloomError, match="encoder and a decoder"):
        stacked(shapes, config, (0, 1))


# --- what cannot be written is refused ----------------------------------------------------------


def jamba(count: int) -> Shapes:
    """Attention in every fourth layer, from the second one on."""
    made: Shapes = {"model.embed_tokens.weight": (16, H)}
    for i in range(count):
        kind = "self_attn.q_proj.weight" if i % 4 == 1 else "mamba.in_proj.weight"
        made[f"model.layers.{i}.{kind}"] = (H, H)
        made[f"model.layers.{i}.norm.weight"] = (H,)
    return made | {"model.norm.weight": (H,)}


JAMBA = {"model_type": "jamba", "num_hidden_layers": 8, "vocab_size": 16, "attn_layer_period": 4,
         "attn_layer_offset": 1}  # fmt: skip


def test_layers_that_alternate_must_keep_their_period():
    assert stacked(jamba(8), JAMBA, (0, 8), (4, 8)).config["num_hidden_layers"] == 12
    for ranges in (((0, 8), (5, 8)), ((1, 8),), ((0, 3), (4, 8))):
        with pytest.raises(mergeloom.MergeloomError, match="another kind of layer"):
            stacked(jamba(8), JAMBA, *ranges)


DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 5, "vocab_size": 16,
            "first_k_dense_replace": 2}  # fmt: skip


def test_first_dense_layers_must_stay_first():
    assert stacked(deepseek(5, 2), DEEPSEEK, (0, 5), (3, 5)).config["num_hidden_layers"] == 7
    for ranges in (((1, 5),), ((0, 5), (1, 5)), ((2, 5),)):
        with pytest.raises(mergeloom.MergeloomError, match="another kind of layer"):
            stacked(deepseek(5, 2), DEEPSEEK, *ranges)


def test_layers_for_further_tokens_are_left_out_of_a_stack_and_kept_in_a_merge():
    shapes, config = MODELS["deepseek"]
    plan = stacked(shapes, config, (0, 4), (2, 4))
    assert plan.config["num_hidden_layers"] == 6
    assert plan.config["num_nextn_predict_layers"] == 0
    assert not any("eh_proj" in job.name for job in plan.jobs)
    tensors = {n: torch.ones(s) for n, s in shapes.items()}
    recipe = {"merge_method": "passthrough", "models": [{"model": "A"}]}
    merged = mergeloom.merge_state_dicts(recipe, {"A": tensors}, configs={"A": config})
    assert set(merged) == set(shapes)


def test_kinds_that_a_derived_list_describes_can_be_reordered():
    """Qwen3-Next's layers differ, and its config may leave the list to the class."""
    shapes: Shapes = {"model.embed_tokens.weight": (16, H), "model.norm.weight": (H,)}
    for i in range(8):
        kind = "self_attn.q_proj.weight" if i % 4 == 3 else "linear_attn.conv1d.weight"
        shapes[f"model.layers.{i}.{kind}"] = (H, H)
    config = {"model_type": "qwen3_next", "num_hidden_layers": 8, "vocab_size": 16}
    got = stacked(shapes, config, (0, 4), (2, 8)).config
    kinds = ([LINEAR] * 3 + [FULL]) * 2
    assert got["layer_types"] == [kinds[i] for i in (0, 1, 2, 3, 2, 3, 4, 5, 6, 7)]


def test_kinds_that_no_list_describes_are_refused_even_beside_a_list():
    """The list speaks of attention only; which layers are dense follows from the position."""
    config = {**DEEPSEEK, "model_type": "glm4_moe", "layer_types": [FULL] * 5}
    with pytest.raises(mergeloom.MergeloomError, match="another kind of layer"):
        stacked(deepseek(5, 2), config, (2, 5), (0, 5))

"""Layers that other tensors or settings speak of: followed where it can be said, else refused."""

from __future__ import annotations

from typing import Any

import pytest
from shapes import VISION, H, Shapes, deepseek, layers, text
from test_layer_config import rewritten, stacked

import mergeloom


def test_lists_that_speak_of_something_else_stay_however_long_they_are():
    config = {"model_type": "falcon_h1", "ssm_multipliers": [1, 2, 3, 4, 5, 6],
              "eos_token_id": [1, 2, 9, 3, 4, 5]}  # fmt: skip
    got = rewritten(config, (0, 4), (2, 6))
    assert {key: got[key] for key in config} == config


def test_layers_with_experts_that_a_class_derives_are_written_out():
    """Llama 4 as on the hub: experts in every second layer by a step, an empty list of flags."""
    shapes: Shapes = text("model", 4, {"self_attn.q_proj.weight": (H, H)})
    for i in range(4):
        kind = "experts.gate_up_proj" if i % 2 else "up_proj.weight"
        shapes[f"model.layers.{i}.feed_forward.{kind}"] = (H, H)
    config = {"model_type": "llama4_text", "num_hidden_layers": 4, "vocab_size": 16,
              "interleave_moe_layer_step": 2, "no_rope_layers": []}  # fmt: skip
    got = stacked(shapes, config, (0, 2), (1, 4)).config
    assert got["moe_layers"] == [1, 2, 4]
    assert got["no_rope_layers"] == [1, 1, 1, 1, 0]


def test_no_list_of_text_layers_is_written_for_a_tower_of_that_name():
    shapes = {**text("model.language_model", 3), **layers("model.visual.blocks", 4, VISION)}
    tower = {"model_type": "qwen3_5", "depth": 4, "patch_size": 4}
    config = {"text_config": {"num_hidden_layers": 3, "vocab_size": 16}, "vision_config": tower}
    got = stacked(shapes, config, (0, 4), (1, 4), module="vision").config
    assert got["vision_config"] == {**tower, "depth": 7}


DEEPSTACK: Shapes = {
    **text("model.language_model", 3),
    **layers("model.visual.blocks", 4, VISION),
    **layers("model.visual.deepstack_merger_list", 2, {"norm.weight": (6,)}),
}


def deepstack(*ranges: tuple[int, int]) -> Any:
    tower = {"depth": 4, "patch_size": 4, "deepstack_visual_indexes": [1, 2]}
    config = {"text_config": {"num_hidden_layers": 3, "vocab_size": 16}, "vision_config": tower}
    return stacked(DEEPSTACK, config, *ranges, module="vision").config["vision_config"]


def test_layers_with_a_module_of_their_own_count_once():
    """Qwen3-VL has one merger for each entry, so a repeated layer must not be a second entry."""
    assert deepstack((0, 3), (1, 4))["deepstack_visual_indexes"] == [1, 2]
    assert deepstack((3, 4), (0, 4))["deepstack_visual_indexes"] == [2, 3]
    with pytest.raises(mergeloom.MergeloomError, match="layer 1 is left out, but a module"):
        deepstack((2, 4))


def test_the_end_of_a_range_of_layers_moves_with_the_last_layer():
    """Ernie 4.5: experts from ``moe_layer_start_index`` to ``moe_layer_end_index``, inclusive."""
    config = {"model_type": "ernie4_5_moe", "num_hidden_layers": 5, "vocab_size": 16,
              "moe_layer_start_index": 1, "moe_layer_end_index": 4}  # fmt: skip
    got = stacked(deepseek(5, 1), config, (0, 3), (1, 5)).config
    assert (got["moe_layer_start_index"], got["moe_layer_end_index"]) == (1, 6)
    with pytest.raises(mergeloom.MergeloomError, match="moe_layer_end_index 3 ends one kind"):
        stacked(deepseek(5, 1), config | {"moe_layer_end_index": 3}, (0, 3), (1, 5))


def test_tensors_with_a_block_for_each_layer_cannot_be_sliced():
    """Gemma-3n's per-layer embeddings; all layers in their order are no change."""
    shapes = {**text("model", 3), "model.embed_tokens_per_layer.weight": (16, 3 * H)}
    config = {"num_hidden_layers": 3, "vocab_size": 16, "hidden_size_per_layer_input": H}
    assert stacked(shapes, config, (0, 2), (2, 3)).config == config
    with pytest.raises(mergeloom.MergeloomError, match="all its 3 layers in one tensor"):
        stacked(shapes, config, (0, 2), (1, 3))


def test_lists_and_positions_may_each_tell_a_part_of_a_layer():
    """LFM2-MoE: convolution or attention by a list, the first layer dense by its position."""
    shapes: Shapes = text("model", 4, {"norm.weight": (H,)})
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    for i, kind in enumerate(kinds):
        for part in (kind, "experts" if i else "dense"):
            shapes[f"model.layers.{i}.{part}.in_proj.weight"] = (H, H)
    config = {"model_type": "lfm2_moe", "num_hidden_layers": 4, "vocab_size": 16,
              "layer_types": kinds, "num_dense_layers": 1}  # fmt: skip
    got = stacked(shapes, config, (0, 2), (1, 4)).config
    assert got["layer_types"] == [kinds[i] for i in (0, 1, 1, 2, 3)]
    for ranges in (((1, 4),), ((0, 4), (0, 4))):
        with pytest.raises(mergeloom.MergeloomError, match="another kind of layer"):
            stacked(shapes, config, *ranges)


def test_stages_of_a_pyramid_cannot_be_sliced():
    """Swin: every stage doubles the width, and ``depths`` would seem to tell the stages apart."""
    shapes: Shapes = {"classifier.weight": (16, H)}
    for i in range(2):
        shapes[f"swin.encoder.layers.{i}.blocks.0.output.dense.weight"] = (H << i, H << i)
    config = {"model_type": "swin", "num_layers": 2, "depths": [1, 2]}
    with pytest.raises(mergeloom.MergeloomError, match="holds stages of layers"):
        stacked(shapes, config, (0, 2), (1, 2))

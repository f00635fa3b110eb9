"""Orders of layers that cannot be written: refused with a way out, or left without the extra."""

from __future__ import annotations

from typing import Any

import pytest
from shapes import BLOCK, MODELS, VISION, H, Shapes, V, deepseek, layers, text
from test_layer_config import stacked

from mergeloom.errors import MergeloomError


def refused(shapes: Shapes, config: dict[str, Any], *ranges: tuple[int, int], **more: Any) -> str:
    with pytest.raises(MergeloomError) as error:
        stacked(shapes, config, *ranges, **more)
    return str(error.value)


def jamba(count: int = 8) -> tuple[Shapes, dict[str, Any]]:
    """Every fourth layer attends, the others are state-space layers; only scalars say so."""
    made = {"model.embed_tokens.weight": (V, H)}
    for i in range(count):
        inner = "self_attn.q_proj" if i % 4 == 2 else "mamba.in_proj"
        made |= {f"model.layers.{i}.{inner}.weight": (H, H), f"model.layers.{i}.norm.weight": (H,)}
    config = {"model_type": "jamba", "num_hidden_layers": count, "vocab_size": V,
              "attn_layer_period": 4, "attn_layer_offset": 2}  # fmt: skip
    return made, config


def test_a_periodic_model_keeps_its_period():
    plan = stacked(*jamba(), (0, 4), (0, 8))
    assert plan.config["num_hidden_layers"] == 12
    told = refused(*jamba(), (0, 3), (2, 8))
    assert "output layer 3 would be layer 2" in told
    assert "Layer 1 or 3 would fit there" in told
    assert "repeat every 4 layers" in told


def test_the_first_layers_extra_stays_in_front():
    """T5's table of distances: left out of copies of layer 0, missed when layer 0 is missing."""
    shapes, config = MODELS["t5"]
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    plan = stacked(shapes, config, (0, 3), (0, 2), module="decoder")
    found = [job.name for job in plan.jobs if job.name.endswith(bias) and "decoder" in job.name]
    assert found == [f"decoder.block.0.{bias}"]
    (told,) = [str(w) for w in plan.warnings if "relative_attention_bias" in str(w)]
    assert f"left out: decoder.block.3.{bias}" in told
    told = refused(shapes, config, (1, 3), module="decoder")
    assert "output layer 0 would be layer 1" in told
    assert "Layer 0 would fit there" in told


def test_the_last_layers_extra_stays_at_the_end():
    shapes, config = MODELS["llama"]
    shapes = {**shapes, "model.layers.2.dense_bias": (H,)}
    plan = stacked(shapes, config, (0, 3), (1, 3))
    found = [job.name for job in plan.jobs if job.name.endswith("dense_bias")]
    assert found == ["model.layers.4.dense_bias"]


def test_layers_that_predict_further_tokens_are_left_out_of_a_new_stack():
    shapes = deepseek(4, 1, extra=1)
    config = MODELS["deepseek"][1]
    plan = stacked(shapes, config, (0, 3), (2, 4))
    assert plan.config["num_nextn_predict_layers"] == 0
    assert not any(".5." in job.name or "eh_proj" in job.name for job in plan.jobs)
    assert any("multi-token-prediction" in str(w) for w in plan.warnings)


def test_layers_that_share_keys_and_values_keep_their_order():
    shapes, config = text("model", 4), {"num_hidden_layers": 4, "vocab_size": V}
    told = refused(shapes, {**config, "num_kv_shared_layers": 2}, (0, 2), (1, 4))
    assert "num_kv_shared_layers" in told
    stacked(shapes, {**config, "num_kv_shared_layers": 2}, (0, 2), (2, 4))
    stacked(shapes, {**config, "num_kv_shared_layers": 0}, (0, 2), (1, 4))


def test_layers_in_several_lists_cannot_be_rebuilt_one_list_at_a_time():
    lists = {**layers("m.attentions", 3, BLOCK), **layers("m.ffns", 3, BLOCK),
             **layers("m.norm1", 3, {"weight": (H,)}), "m.embeddings.weight": (V, H)}  # fmt: skip
    told = refused(lists, {"n_layers": 3, "vocab_size": V}, (0, 2), (1, 3))
    assert "one number (n_layers)" in told
    assert "m.norm1" in told


def test_a_count_that_config_json_leaves_to_its_class_is_written():
    """LLaVA 1.5: its text_config says nothing of 32 layers."""
    shapes, config = MODELS["llava"]
    config = {"model_type": "llava", "text_config": {"vocab_size": V},
              "vision_config": config["vision_config"]}  # fmt: skip
    plan = stacked(shapes, config, (0, 2), (1, 3))
    assert plan.config["text_config"] == {"vocab_size": V, "num_hidden_layers": 4}


def test_a_count_that_is_not_the_weights_is_told():
    shapes, config = MODELS["llama"]
    wrong = {**config, "num_hidden_layers": 7}
    assert "does not say so" in refused(shapes, wrong, (0, 2), (1, 3))


def test_the_vision_layer_that_the_text_reads_is_followed():
    shapes, config = MODELS["llava"]
    for states, after in ((2, 2), (-2, -2), ([1, 3, -1], [1, 5, -1]), (0, 0)):
        told = {**config, "vision_feature_layer": states}
        plan = stacked(shapes, told, (0, 2), (0, 3), module="vision")
        assert plan.config["vision_config"]["num_hidden_layers"] == 5
        assert plan.config["vision_feature_layer"] == after
    told = refused(shapes, {**config, "vision_feature_layer": 3}, (0, 2), module="vision")
    assert "layer 2, which is left out" in told


def test_a_list_beside_two_counts_is_the_encoders():
    shapes, config = MODELS["whisper"]
    config = {**config, "decoder_layers": 2, "encoder_layers": 2, "attention_window": [4, 8]}
    shapes = {n: s for n, s in shapes.items() if "decoder.layers.2" not in n}
    plan = stacked(shapes, config, (0, 2), (1, 2), module="decoder")
    assert (plan.config["decoder_layers"], plan.config["attention_window"]) == (3, [4, 8])
    plan = stacked(shapes, config, (0, 2), (1, 2), module="encoder")
    assert plan.config["attention_window"] == [4, 8, 8]


def test_equal_counts_of_two_parts_are_told_apart():
    shapes = {**text("model", 3), **layers("model.qformer.encoder.layer", 3, VISION)}
    config = {"text_config": {"num_hidden_layers": 3, "vocab_size": V},
              "qformer_config": {"num_hidden_layers": 3}}  # fmt: skip
    plan = stacked(shapes, config, (0, 2), (1, 3))
    assert plan.config["text_config"]["num_hidden_layers"] == 4
    assert plan.config["qformer_config"]["num_hidden_layers"] == 3

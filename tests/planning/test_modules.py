"""Recipes that speak of one part of a model by its name."""

from __future__ import annotations

import json

import pytest
import torch
from recipes import each, jobs, planned, sources

import mergeloom

V, H = 16, 8
TEXT = {"language_model.model.embed_tokens.weight": (V, H), "language_model.lm_head.weight": (V, H),
        "language_model.model.norm.weight": (H,),
        **{f"language_model.model.layers.{i}.mlp.up.weight": (H, H) for i in range(3)}}  # fmt: skip
VISION = {
    "vision_tower.patch_embedding.weight": (6, 3),
    **{f"vision_tower.encoder.layers.{i}.mlp.fc1.weight": (6, 6) for i in range(3)},
}
PROJECTOR = {"multi_modal_projector.linear_1.weight": (H, 6)}
CONFIG = {"model_type": "llava", "text_config": {"num_hidden_layers": 3, "vocab_size": V},
          "vision_config": {"num_hidden_layers": 3}}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from models import save

    folder = tmp_path_factory.mktemp("vlm")
    for name in "AB":
        tensors = {n: torch.zeros(s) for n, s in {**VISION, **PROJECTOR, **TEXT}.items()}
        save(folder / name, tensors, CONFIG)
        text = {n.removeprefix("language_model."): torch.zeros(s) for n, s in TEXT.items()}
        save(folder / f"{name}text", text, {"model_type": "llama", "num_hidden_layers": 3,
                                            "vocab_size": V})  # fmt: skip
    return folder


def test_what_no_module_speaks_of_is_copied_from_the_donor(folder):
    made = jobs(planned(folder, """
merge_method: linear
modules:
  text_decoder: {models: [{model: A, parameters: {weight: 1}}, {model: B, parameters: {weight: 3}}]}
"""))  # fmt: skip
    assert set(made) == {*TEXT, *VISION, *PROJECTOR}
    for name, job in made.items():
        if name in TEXT:
            assert (job.method, each(job, "weight")) == ("linear", [1, 3])
        else:
            assert (job.method, sources(job)) == (None, [f"A:{name}"])


def test_every_module_has_its_own_models(folder):
    made = jobs(planned(folder, """
merge_method: linear
parameters: {weight: 1}
modules:
  vision_tower: {models: [{model: B}], parameters: {weight: 2}}
  multi_modal_projector: {models: [{model: A}, {model: B}]}
  text: {models: [{model: B}, {model: A}], parameters: {weight: [1, 2]}}
"""))  # fmt: skip
    assert [sources(made[n]) for n in VISION] == [[f"B:{n}"] for n in VISION]
    assert each(made["vision_tower.patch_embedding.weight"], "weight") == [2]
    assert sources(made["multi_modal_projector.linear_1.weight"]) == [
        f"{m}:multi_modal_projector.linear_1.weight" for m in "AB"
    ]
    up = "language_model.model.layers.{}.mlp.up.weight"
    assert [each(made[up.format(i)], "weight") for i in range(3)] == [[1, 1], [1.5, 1.5], [2, 2]]
    assert sources(made[up.format(0)]) == [f"{m}:{up.format(0)}" for m in "BA"]


def test_slices_without_a_module_are_of_the_text(folder):
    plan = planned(
        folder,
        """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 2]}]
- sources: [{model: B, layer_range: [1, 3]}]
""",
    )
    made = jobs(plan)
    assert plan.config == {**CONFIG, "text_config": {"num_hidden_layers": 4, "vocab_size": V}}
    assert sources(made["language_model.model.layers.3.mlp.up.weight"]) == [
        "B:language_model.model.layers.2.mlp.up.weight"
    ]
    assert sources(made["language_model.lm_head.weight"]) == ["B:language_model.lm_head.weight"]
    assert [sources(made[n]) for n in VISION] == [[f"A:{n}"] for n in VISION]


def test_a_text_model_is_merged_into_a_vision_model(folder):
    plan = planned(
        folder,
        """
merge_method: linear
modules:
  text: {models: [{model: A, parameters: {weight: 1}}, {model: Btext, parameters: {weight: 1}}]}
""",
    )
    made = jobs(plan)
    for name in TEXT:
        assert sources(made[name]) == [f"A:{name}", f"Btext:{name.removeprefix('language_model.')}"]
    assert [sources(made[n]) for n in VISION] == [[f"A:{n}"] for n in VISION]
    assert any("matched" in str(w) for w in plan.warnings)


def test_models_that_have_a_tower_and_one_that_has_none_need_modules(folder):
    recipe = """
        merge_method: task_arithmetic
        base_model: A
        models: [{model: B, parameters: {weight: 1}}, {model: Btext, parameters: {weight: 1}}]
    """
    with pytest.raises(mergeloom.MergeloomError, match="lacks 5 of the") as told:
        planned(folder, recipe)
    assert "which models go into which part, as in modules: {text_decoder" in str(told.value)


def test_an_unknown_module_is_refused_with_the_nearest_name(folder):
    with pytest.raises(mergeloom.MergeloomError, match=r"no module 'visoin'.*vision"):
        planned(folder, "merge_method: linear\nmodules: {visoin: {models: [{model: A}]}}")


def test_an_encoder_and_a_decoder_get_different_slices(tmp_path):
    from models import save

    shapes = {"shared.weight": (V, H), "encoder.final_layer_norm.weight": (H,),
              "decoder.final_layer_norm.weight": (H,), "lm_head.weight": (V, H)}  # fmt: skip
    for side, count in (("encoder", 3), ("decoder", 4)):
        shapes |= {f"{side}.block.{i}.layer.0.q.weight": (H, H) for i in range(count)}
    config = {"num_layers": 3, "num_decoder_layers": 4, "vocab_size": V, "model_type": "t5"}
    for name in "AB":
        save(tmp_path / name, {n: torch.zeros(s) for n, s in shapes.items()}, config)
    plan = planned(
        tmp_path,
        """
merge_method: passthrough
modules:
  encoder: {slices: [{sources: [{model: A, layer_range: [0, 3]}]},
                     {sources: [{model: B, layer_range: [2, 3]}]}]}
  decoder: {slices: [{sources: [{model: B, layer_range: [1, 3]}]}]}
""",
    )
    made = jobs(plan)
    assert json.loads(json.dumps(plan.config)) == {**config, "num_layers": 4,
                                                   "num_decoder_layers": 2}  # fmt: skip
    blocks = sorted(n for n in made if "block" in n)
    assert blocks == [f"decoder.block.{i}.layer.0.q.weight" for i in range(2)] + [
        f"encoder.block.{i}.layer.0.q.weight" for i in range(4)
    ]
    assert sources(made["encoder.block.3.layer.0.q.weight"]) == [
        "B:encoder.block.2.layer.0.q.weight"
    ]
    assert sources(made["decoder.block.0.layer.0.q.weight"]) == [
        "B:decoder.block.1.layer.0.q.weight"
    ]
    assert sources(made["encoder.final_layer_norm.weight"]) == ["B:encoder.final_layer_norm.weight"]
    assert sources(made["decoder.final_layer_norm.weight"]) == ["B:decoder.final_layer_norm.weight"]
    assert sources(made["shared.weight"]) == ["A:shared.weight"]


def test_two_names_of_one_module_are_refused(folder):
    recipe = """
        merge_method: linear
        parameters: {weight: 1}
        modules:
          text: {models: [{model: A}, {model: B}]}
          default: {models: [{model: A}]}
    """
    with pytest.raises(mergeloom.MergeloomError, match="means tensors that another module has"):
        planned(folder, recipe)

"""Which value a parameter has for which tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import llama, llama_config, save
from recipes import each, jobs, planned

import mergeloom

NORM, HEAD, EMBED = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"


LEVELS = {
    "source": 1,
    "slice": 2,
    "model": 3,
    "module": 4,
    "top": 5,
}


@pytest.mark.parametrize("given", [
    ["source", "slice", "model", "module", "top"], ["slice", "model", "module", "top"],
    ["model", "module", "top"], ["module", "top"], ["top"], ["source", "top"], ["slice", "module"],
    ["model", "top"], ["source", "model"],
])  # fmt: skip
def test_the_nearest_level_wins(folder, given):
    def level(name: str) -> str:
        return f"parameters: {{weight: {LEVELS[name]}}}" if name in given else "parameters: {}"

    made = jobs(planned(folder, f"""
merge_method: linear
{level("top")}
input_model_parameters: {{A: {{{"weight: 3" if "model" in given else ""}}}}}
modules:
  text:
    {level("module")}
    slices:
    - {level("slice")}
      sources:
      - {{model: A, layer_range: [0, 4], {level("source")}}}
      - {{model: B, layer_range: [0, 4], parameters: {{weight: 9}}}}
"""))  # fmt: skip
    for name in (Q.format(2), EMBED, NORM, HEAD):
        assert each(made[name], "weight") == [LEVELS[given[0]], 9], name


def test_a_level_whose_filters_do_not_match_counts_as_absent(folder):
    made = jobs(planned(folder, """
merge_method: linear
parameters: {weight: [{filter: lm_head, value: 6}, {value: 5}]}
models:
- {model: A, parameters: {weight: [{filter: q_proj, value: 1}, {filter: layers.2, value: 2}]}}
- {model: B, parameters: {weight: 1}}
"""))  # fmt: skip
    picked = {n: each(made[n], "weight")[0] for n in
              (Q.format(2), "model.layers.2.mlp.up_proj.weight", NORM, HEAD)}  # fmt: skip
    assert list(picked.values()) == [1, 2, 5, 6]


def test_gradients_over_a_whole_model(folder):
    made = jobs(planned(folder, """
merge_method: linear
parameters: {weight: [0, 0.5, 0.3, 1]}
models: [{model: A}, {model: B, parameters: {weight: 1}}]
"""))  # fmt: skip
    assert [each(made[Q.format(i)], "weight")[0] for i in range(4)] == pytest.approx(
        [0, 0.5, 0.3, 1]
    )
    assert each(made[EMBED], "weight")[0] == 0
    assert each(made[NORM], "weight")[0] == each(made[HEAD], "weight")[0] == 1


GRADIENTS = [
    ([0, 0.5, 0.3, 0.7, 1], 9, [0, 0.25, 0.5, 0.4, 0.3, 0.5, 0.7, 0.85, 1]),
    ([0, 0.5, 0.3, 0.7, 1], 6, [0, 0.4, 0.38, 0.46, 0.76, 1]),
    ([1, 0], 1, [0]),
    ([0.25], 4, [0.25] * 4),
    ([0, 1], 2, [0, 1]),
]


@pytest.mark.parametrize(("values", "layers", "wanted"), GRADIENTS)
def test_golden_gradients(values, layers, wanted, tmp_path: Path):
    for name in "AB":
        save(tmp_path / name, llama(layers), llama_config(layers))
    made = jobs(planned(tmp_path, f"""
merge_method: slerp
base_model: A
models: [{{model: A}}, {{model: B}}]
parameters: {{t: {json.dumps(values)}}}
"""))  # fmt: skip
    found = [made[Q.format(i)].parameters["t"] for i in range(layers)]
    assert found == pytest.approx(wanted)


def test_a_gradient_in_a_filter(folder):
    made = jobs(planned(folder, """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters:
  t: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 0.25}, {value: 0.5}]
"""))  # fmt: skip
    assert [made[Q.format(i)].parameters["t"] for i in range(4)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )
    assert made["model.layers.1.mlp.up_proj.weight"].parameters["t"] == 0.25
    assert made[HEAD].parameters["t"] == made[EMBED].parameters["t"] == 0.5


def test_a_filter_matches_a_plain_part_of_the_name(folder, tmp_path):
    for name in "AB":
        save(tmp_path / name, llama(12), llama_config(12))
    made = jobs(planned(tmp_path, """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: [{filter: layers.1., value: 1}, {filter: "layers.1", value: 0.75},
                 {filter: "*", value: 0.5}]}
"""))  # fmt: skip
    assert [made[Q.format(i)].parameters["t"] for i in (0, 1, 2, 10, 11)] == [
        0.5, 1, 0.5, 0.75, 0.75,
    ]  # fmt: skip


def test_a_filter_for_the_head_reaches_a_tied_model(folder):
    """Its head is its embedding, but the recipe speaks of the head."""
    made = jobs(planned(folder, """
merge_method: linear
models:
- {model: A, parameters: {weight: 1}}
- {model: T, parameters: {weight: [{filter: lm_head, value: 3}, {value: 2}]}}
"""))  # fmt: skip
    assert each(made[HEAD], "weight") == [1, 3]
    assert each(made[EMBED], "weight") == [1, 2]


def test_a_filter_that_matches_nothing_is_refused(folder):
    recipe = """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: [{filter: self_atn, value: 1}, {value: 0.5}]}
"""
    with pytest.raises(mergeloom.RecipeError, match=r"matched 0 of .* did you mean self_attn"):
        planned(folder, recipe)
    plan = planned(folder, recipe, lenient=True)
    assert any("matched 0" in str(warning) for warning in plan.warnings)


def test_a_filter_whose_tensors_are_given_elsewhere_is_only_told(folder):
    """In another slice or by a level before it: nothing is misspelt then."""
    plan = planned(
        folder,
        """
merge_method: passthrough
parameters: {scale: [{filter: layers.0., value: 2}, {value: 1}]}
slices:
- sources: [{model: A, layer_range: [0, 1], parameters: {scale: 3}}]
- sources: [{model: A, layer_range: [1, 4], parameters: {scale: {filter: mlp, value: 4}}}]
  parameters: {scale: {filter: up_proj, value: 5}}
""",
    )
    assert [w.where for w in plan.warnings if "has no effect here" in w.message] == [
        "slices[1].parameters.scale",
        "parameters.scale[0]",
    ]
    assert each(jobs(plan)["model.layers.0.mlp.up_proj.weight"], "scale") == [3]
    assert each(jobs(plan)["model.layers.1.mlp.up_proj.weight"], "scale") == [4]


def test_a_required_parameter_that_is_missing_names_model_and_parameter(folder):
    with pytest.raises(mergeloom.RecipeError) as failure:
        planned(folder, "merge_method: linear\nmodels: [{model: A}, {model: B}]\n")
    assert [p.where for p in failure.value.problems] == ["models[0]", "models[1]"]
    assert all("weight" in p.message for p in failure.value.problems)


def test_the_base_needs_no_weight_and_gets_none(folder):
    made = jobs(planned(folder, """
merge_method: task_arithmetic
base_model: A
models: [{model: B, parameters: {weight: 2}}]
"""))  # fmt: skip
    assert made[NORM].has_base
    assert dict(made[NORM].inputs[0].parameters) == {}
    assert each(made[NORM], "weight") == [2]


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_a_base_that_the_method_does_not_use_only_gives_the_config(method, folder):
    plan = planned(
        folder,
        f"""
merge_method: {method}
base_model: B
parameters: {{{"weight: 1" if method == "linear" else "scale: 2"}}}
models: [{{model: A}}]
""",
    )
    assert all(len(job.inputs) == 1 for job in plan.jobs)
    assert all(Path(job.inputs[0].model).name == "A" for job in plan.jobs)
    assert Path(plan.donor).name == "B"


def test_with_t_and_weight_t_wins_with_a_warning(folder):
    plan = planned(
        folder,
        """
merge_method: slerp
base_model: A
parameters: {t: 0.25}
models: [{model: A}, {model: B, parameters: {weight: 2}}]
""",
    )
    assert any("weight" in str(warning) for warning in plan.warnings)

"""Does a recipe with slices make exactly this plan?"""

from __future__ import annotations

import pytest
from models import llama_names
from recipes import at, each, jobs, planned, sources

import mergeloom

NORM, HEAD, EMBED = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"


STACKED = """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 3]}]
- sources: [{model: B, layer_range: [1, 4]}]
"""


def test_layers_are_numbered_anew(folder):
    plan = planned(folder, STACKED)
    made = jobs(plan)
    assert set(made) == {name for name, _ in llama_names(6)}
    order = [name.split(".")[2] if "layers" in name else name for name in made]
    assert list(dict.fromkeys(order)) == [EMBED, "0", "1", "2", "3", "4", "5", NORM, HEAD]
    assert all(job.shape == dict(llama_names(6))[name] for name, job in made.items())
    layers = [("A", 0), ("A", 1), ("A", 2), ("B", 1), ("B", 2), ("B", 3)]
    for out, (model, layer) in enumerate(layers):
        for suffix in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            name = f"model.layers.{out}.{suffix}.weight"
            assert sources(made[name]) == [f"{model}:model.layers.{layer}.{suffix}.weight"]
    assert plan.config["num_hidden_layers"] == 6


def test_the_first_slice_makes_the_embeddings_and_the_last_one_the_tail(folder):
    made = jobs(planned(folder, STACKED))
    assert sources(made[EMBED]) == [f"A:{EMBED}"]
    assert sources(made[NORM]) == [f"B:{NORM}"]
    assert sources(made[HEAD]) == [f"B:{HEAD}"]


def test_slices_without_layers_choose_the_ends(folder):
    made = jobs(planned(folder, """
merge_method: passthrough
slices:
- sources: [{model: B, layer_range: [0, 0]}]
- sources: [{model: A, layer_range: [1, 3]}]
- sources: [{model: B, layer_range: [4, 4]}]
"""))  # fmt: skip
    assert sources(made[EMBED]) == [f"B:{EMBED}"]
    assert sources(made[NORM]) == [f"B:{NORM}"]
    assert sources(made[Q.format(0)]) == [f"A:{Q.format(1)}"]
    assert Q.format(2) not in made


def test_gradients_run_within_a_slice(folder):
    made = jobs(planned(folder, """
merge_method: linear
slices:
- sources:
  - {model: A, layer_range: [0, 3], parameters: {weight: [1, 3]}}
  - {model: B, layer_range: [1, 4], parameters: {weight: [0.25, 0.5, 0.75]}}
- sources:
  - {model: A, layer_range: [2, 3], parameters: {weight: [1, 7]}}
  - {model: B, layer_range: [0, 1], parameters: {weight: 1}}
"""))  # fmt: skip
    assert [each(made[Q.format(i)], "weight") for i in range(4)] == [
        [1, 0.25], [2, 0.5], [3, 0.75], [7, 1],
    ]  # fmt: skip
    assert each(made[EMBED], "weight") == [1, 0.25]
    assert each(made[NORM], "weight") == each(made[HEAD], "weight") == [7, 1]
    assert sources(made[Q.format(1)]) == [f"A:{Q.format(1)}", f"B:{Q.format(2)}"]


def test_filters_of_a_source_read_its_own_layer_numbers(folder):
    made = jobs(planned(folder, """
merge_method: linear
slices:
- sources:
  - model: A
    layer_range: [2, 4]
    parameters: {weight: [{filter: layers.3., value: 5}, {value: 1}]}
  - model: B
    layer_range: [0, 2]
    parameters: {weight: [{filter: layers.0., value: 7}, {value: 2}]}
  parameters:
    normalize: [{filter: layers.1., value: false}, {value: true}]
"""))  # fmt: skip
    assert each(made[Q.format(0)], "weight") == [1, 7]
    assert each(made[Q.format(1)], "weight") == [5, 2]
    # Settings that are not a model's go by the output's name.
    assert made[Q.format(0)].parameters == {"normalize": True}
    assert made[Q.format(1)].parameters == {"normalize": False}


def test_a_base_for_each_slice_and_different_numbers_of_sources(folder):
    made = jobs(planned(folder, """
merge_method: task_arithmetic
base_model: A
parameters: {weight: 0.5}
slices:
- sources: [{model: B, layer_range: [0, 2]}, {model: A, layer_range: [1, 3]}]
- base_model: B
  sources: [{model: A, layer_range: [0, 1]}, {model: B, layer_range: [2, 3]},
            {model: A, layer_range: [3, 4]}]
"""))  # fmt: skip
    assert sources(made[Q.format(0)]) == [f"A:{Q.format(1)}", f"B:{Q.format(0)}"]
    assert sources(made[Q.format(2)]) == [f"B:{Q.format(2)}", f"A:{Q.format(0)}",
                                          f"A:{Q.format(3)}"]  # fmt: skip
    assert all(made[Q.format(i)].has_base for i in range(3))
    assert each(made[Q.format(2)], "weight") == [0.5, 0.5]
    assert sources(made[NORM]) == [f"B:{NORM}", f"A:{NORM}", f"A:{NORM}"]


def test_a_model_twice_in_a_slice_is_two_inputs(folder):
    made = jobs(planned(folder, """
merge_method: linear
slices:
- sources:
  - {model: A, layer_range: [0, 2], parameters: {weight: 1}}
  - {model: A, layer_range: [2, 4], parameters: {weight: 3}}
"""))  # fmt: skip
    assert sources(made[Q.format(1)]) == [f"A:{Q.format(1)}", f"A:{Q.format(3)}"]
    assert each(made[Q.format(1)], "weight") == [1, 3]


def test_the_same_plan_with_an_open_end(folder):
    assert [j.name for j in planned(folder, STACKED).jobs] == [
        j.name for j in planned(folder, STACKED.replace("[1, 4]", "[1, null]")).jobs
    ]


def test_tied_models_give_their_embedding_as_a_head(folder):
    made = jobs(planned(folder, STACKED.replace("model: B", "model: T")))
    assert sources(made[HEAD]) == [f"T:{EMBED}"]
    assert sources(made[EMBED]) == [f"A:{EMBED}"]
    made = jobs(planned(folder, STACKED.replace("model: A", "model: T")))
    assert sources(made[HEAD]) == [f"B:{HEAD}"]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (("[0, 5]", "[0, 1]"), "has 4 layers"),
        (("[0, 2]", "[3, 1]"), "layer_range"),
        (("[0, 2]", "[-1, 1]"), "layer_range"),
        (("[2, 2]", "[4, 4]"), "no layers at all"),
    ],
)
def test_wrong_ranges_are_refused(folder, ranges, message):
    recipe = STACKED.replace("[0, 3]", ranges[0]).replace("[1, 4]", ranges[1])
    with pytest.raises(mergeloom.MergeloomError, match=message):
        planned(folder, recipe)


def test_sources_of_different_lengths_are_refused(folder):
    with pytest.raises(mergeloom.MergeloomError, match="equally many layers"):
        planned(
            folder,
            """
merge_method: linear
parameters: {weight: 1}
slices: [{sources: [{model: A, layer_range: [0, 3]}, {model: B, layer_range: [0, 2]}]}]
""",
        )


def test_a_slice_without_the_base_is_refused_where_the_method_needs_it(folder):
    with pytest.raises(mergeloom.RecipeError, match="every slice"):
        planned(
            folder,
            """
merge_method: task_arithmetic
base_model: A
parameters: {weight: 1}
slices: [{sources: [{model: B, layer_range: [0, 3]}]}]
""",
        )


def test_a_tensor_that_only_the_donor_has_is_not_lost(folder, tmp_path):
    """The donor of names is no input here; nothing it has may vanish without a word."""
    import torch
    from models import llama, llama_config, save

    save(tmp_path / "D", {**llama(4), "model.extra.weight": torch.ones(3)}, llama_config(4))
    recipe = at(folder, """
merge_method: linear
base_model: D
parameters: {weight: 1}
slices: [{sources: [{model: A, layer_range: [0, 4]}, {model: B, layer_range: [0, 4]}]}]
""")  # fmt: skip
    recipe["base_model"] = str(tmp_path / "D")
    made = jobs(mergeloom.plan(recipe))
    assert sources(made["model.extra.weight"]) == ["D:model.extra.weight"]


UNSELECTED = """
merge_method: linear
base_model: B
parameters: {weight: 0.5}
exclude: ['*norm*', lm_head.weight]
slices:
- sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [1, 3]}]
- sources: [{model: A, layer_range: [1, 2]}]
"""


def test_what_is_excluded_is_the_bases_also_where_the_method_has_no_base(folder):
    made = jobs(planned(folder, UNSELECTED))
    norm = "model.layers.{}.input_layernorm.weight"
    assert sources(made[norm.format(0)]) == [f"B:{norm.format(1)}"]  # a source, second in line
    assert sources(made[norm.format(2)]) == [f"A:{norm.format(1)}"]  # no layer of B belongs here
    for name in (NORM, HEAD):
        assert sources(made[name]) == [f"B:{name}"]


def test_a_missing_base_of_a_slice_is_told_at_its_place(folder):
    recipe = """
        merge_method: passthrough
        slices:
        - sources: [{model: A, layer_range: [0, 2]}]
        - base_model: ./nowhere
          sources: [{model: A, layer_range: [2, 4]}]
    """
    with pytest.raises(mergeloom.CheckpointError, match=r"slices\[1\].base_model.*does not exist"):
        planned(folder, recipe)

"""``rename:`` gives a model's tensors the names that the base has for them."""

from __future__ import annotations

import json

import pytest
import torch
from models import llama, llama_config, save
from recipes import at, jobs, planned, sources

import mergeloom

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A llama, and another one whose layers are called in a way that nothing else is."""
    folder = tmp_path_factory.mktemp("renaming")
    save(folder / "A", llama(LAYERS), llama_config(LAYERS))
    odd = {n.replace("model.layers", "decoder.cells").replace("self_attn.", "mix.")
            .replace("mlp.", "feed.").replace("_proj.", ".").replace("layernorm", "ln"): t
           for n, t in llama(LAYERS, 1).items()}  # fmt: skip
    save(folder / "O", odd, llama_config(LAYERS))
    return folder


RULES = """{'re:^decoder\\.cells\\.(\\d+)\\.mix\\.(.)\\.': 'model.layers.\\1.self_attn.\\2_proj.',
   're:^decoder\\.cells\\.(\\d+)\\.feed\\.(\\w+)\\.': 'model.layers.\\1.mlp.\\2_proj.',
   're:^decoder\\.cells\\.(.*)_ln\\.': 'model.layers.\\1_layernorm.'}"""


def recipe(rules: str) -> str:
    return f"""
merge_method: linear
parameters: {{weight: 1}}
models: [{{model: A}}, {{model: O, rename: {rules}}}]
"""


def test_names_are_replaced_by_the_first_rule_that_fits(folder):
    made = jobs(planned(folder, recipe(RULES)))
    assert set(made) == set(llama(LAYERS))
    for name, job in made.items():
        assert sources(job) == [f"A:{name}", f"O:{name}"]
    job = made["model.layers.2.self_attn.q_proj.weight"]
    assert "cells" not in job.inputs[1].tensor
    merged = mergeloom.merge(at(folder, recipe(RULES)), folder / "out").out
    from safetensors.torch import load_file

    got = load_file(merged / "model.safetensors")
    a, b = llama(LAYERS), llama(LAYERS, 1)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
    assert json.loads((merged / "config.json").read_text())["num_hidden_layers"] == LAYERS


def test_a_beginning_is_replaced_and_also_in_slices(folder, tmp_path):
    for name, tensors in (("A", llama(LAYERS)), ("B", llama(LAYERS, 1))):
        wrapped = {n if name == "A" else f"inner.{n}.x": t for n, t in tensors.items()}
        save(tmp_path / name, wrapped, llama_config(LAYERS))
    made = jobs(planned(tmp_path, """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 2]}]
- sources: [{model: B, layer_range: [1, 3], rename: {'re:^inner\\.(.*)\\.x$': '\\1'}}]
"""))  # fmt: skip
    assert sources(made["model.layers.3.mlp.up_proj.weight"]) == [
        "B:model.layers.2.mlp.up_proj.weight"
    ]
    same = recipe("{'re:^.*$': model.norm.weight}").replace("O", "B")
    with pytest.raises(mergeloom.MergeloomError, match=r"both called 'model\.norm\.weight' then"):
        planned(tmp_path, same)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            "{'decoder.cell.': 'model.layers.'}",
            r"fits 'decoder.cell.'; did you mean decoder\.cells",
        ),
        ("{'re:^(decoder': x}", r"models\[1\].rename.*not a valid regular expression"),
        ("{'re:^decoder': '\\7'}", "does not fit 're:\\^decoder': invalid group reference"),
        ("[a, b]", "a mapping from old to new names is wanted, not a list"),
        ("{decoder: 3}", "names are texts, not the number 3"),
        ("{'re:.*': ''}", "is called '' then"),
    ],
)
def test_rules_that_cannot_be_used(folder, rules, message):
    with pytest.raises(mergeloom.MergeloomError, match=message):
        planned(folder, recipe(rules))


def test_a_model_has_one_set_of_names(folder):
    text = """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 1], rename: {model.: x.}}]
- sources: [{model: A, layer_range: [1, 2], rename: {model.: y.}}]
"""
    with pytest.raises(mergeloom.MergeloomError, match=r"another way at slices\[0\]"):
        planned(folder, text)

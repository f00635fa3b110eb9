"""Every model type, merged and restacked: transformers loads it, and it computes the right thing.

The references are whole models of transformers, averaged or put together by hand in plain torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergeloom
from matrix.conftest import Pair
from matrix.inputs import make_inputs
from matrix.reference import answers, average, layer_lists, owner_config, put_together, traits

SHARE = 0.6
Loader = Callable[[Path], Any]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def close(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Equal but for the rounding of weights to float32, which a forward pass amplifies."""
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        apart = (got[name] - value).abs().max() / value.abs().max()
        assert apart < 1e-4, f"{name} differs by {apart:.1e} of its largest value"


def test_a_linear_merge_is_the_average_of_the_whole_models(
    pair: Pair, loaded: Loader, tmp_path: Path
) -> None:
    inputs = [{"model": str(pair.a), "parameters": {"weight": 1 - SHARE}},
              {"model": str(pair.b), "parameters": {"weight": SHARE}}]  # fmt: skip
    out = mergeloom.merge({"merge_method": "linear", "models": inputs}, tmp_path / "out").out

    a, b, merged = tensors(pair.a), tensors(pair.b), tensors(out)
    assert set(merged) == set(a)
    for name, value in merged.items():
        wanted = (1 - SHARE) * a[name].double() + SHARE * b[name].double()
        assert value.dtype == a[name].dtype, name
        torch.testing.assert_close(value, wanted.to(value.dtype), rtol=1e-6, atol=1e-7, msg=name)
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (pair.a / "config.json").read_text()
    )

    model, given = loaded(out), make_inputs(pair.case.inputs)
    expected = average(*pair.models, SHARE)
    got = answers(model, given)
    assert all(torch.isfinite(value).all() for value in got.values())
    close(got, answers(expected, given))
    first = answers(copy.deepcopy(pair.models[0]), given)
    assert all(not torch.allclose(got[name], value, atol=1e-3) for name, value in first.items())


def test_a_stack_is_the_model_put_together_by_hand(
    pair: Pair, loaded: Loader, tmp_path: Path
) -> None:
    """Every stack of the model in turn: layers 0 and 1 of one sibling, all but 0 of the other."""
    for stack, module in pair.case.stacks.items():
        check_stack(pair, loaded, stack, module, tmp_path / stack)


def check_stack(pair: Pair, loaded: Loader, stack: str, module: str | None, folder: Path) -> None:
    a, b = pair.models
    length = len(a.get_submodule(stack))
    slices = [{"sources": [{"model": str(pair.a), "layer_range": [0, 2]}]},
              {"sources": [{"model": str(pair.b), "layer_range": [1, length]}]}]  # fmt: skip
    body: dict[str, Any] = {"slices": slices}
    recipe = {"merge_method": "passthrough"} | (
        body if module is None else {"modules": {module: body}}
    )
    if pair.case.refused:
        with pytest.raises(mergeloom.MergeloomError, match=pair.case.refused):
            mergeloom.merge(recipe, folder)
        return
    made = loaded(mergeloom.merge(recipe, folder).out)
    layers = [*a.get_submodule(stack)[:2], *b.get_submodule(stack)[1:]]
    assert [traits(layer) for layer in made.get_submodule(stack)] == [traits(x) for x in layers]
    selection = [0, 1, *range(1, length)]
    theirs, ours = owner_config(a, stack), owner_config(made, stack)
    assert set(ours.to_dict()) - set(pair.case.older) == set(theirs.to_dict()) - set(
        pair.case.older
    )
    for key, value in layer_lists(theirs, length).items():
        assert list(getattr(ours, key)) == [value[i] for i in selection], key

    others = {n: t for n, t in made.state_dict().items() if not n.startswith(f"{stack}.")}
    states = [model.state_dict() for model in pair.models]
    for name, value in others.items():
        assert any(torch.equal(value, state[name]) for state in states), name
    if module is None and pair.case.inputs == "text":
        assert torch.equal(made.get_input_embeddings().weight, a.get_input_embeddings().weight)
        head = made.get_output_embeddings()
        if head is not None and head.weight is not made.get_input_embeddings().weight:
            assert torch.equal(head.weight, b.get_output_embeddings().weight)
    given = make_inputs(pair.case.inputs)
    close(answers(made, given), answers(put_together(made, stack, layers, others), given))

"""A resumed merge keeps and drops exactly what an undisturbed one does."""

from __future__ import annotations

import pytest
import torch
from models import assert_same_files, save
from stopping import Stop, stop_after

import mergeloom

CHOOSING = {
    "dare_ties": "{density: 0.4}",
    "ties": "{density: 0.4, rescale: true}",
    "della_linear": "{density: 0.5}",
    "sce": "{select_topk: 0.3}",
    "arcee_fusion": "{}",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(["base", "one", "two"]):
        chance = torch.Generator().manual_seed(seed)
        tensors = {f"t{i}": torch.randn(70, 1009, generator=chance).bfloat16() for i in range(8)}
        save(folder / name, tensors, {"model_type": "x"})
    return folder


@pytest.mark.parametrize("method", CHOOSING)
def test_resume(method, inputs, tmp_path):
    models = ["one"] if method == "arcee_fusion" else ["one", "two"]
    weight = "" if method in {"sce", "arcee_fusion"} else ", parameters: {weight: 0.7}"
    text = f"merge_method: {method}\nbase_model: {inputs / 'base'}\nmodels:\n" + "".join(
        f"- {{model: {inputs / name}{weight}}}\n" for name in models
    )
    text += f"parameters: {CHOOSING[method]}\n"
    options = mergeloom.Options(seed=7)
    mergeloom.merge(text, tmp_path / "whole" / "out", options=options)
    out = tmp_path / "out"
    for pieces in (5, 9):
        with pytest.raises(Stop):
            mergeloom.merge(text, out, progress=stop_after(pieces), threads=1, options=options)
    done = mergeloom.merge(text, out, options=options)
    assert 0 < done.resumed < 8
    assert_same_files(out, tmp_path / "whole" / "out")

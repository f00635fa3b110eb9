"""The recipe that each method shows, in the docs and in ``explain``, runs on tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_models
import torch

import mergeloom
from mergeloom.methods import METHODS

MODEL = re.compile(r"\borg/[\w-]+")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    named = {name for method in METHODS.values() for name in MODEL.findall(method.example)}
    for name in sorted(named):
        tiny_models.llama(root / "shallow" / name, layers=2)
    for name in MODEL.findall(METHODS["passthrough"].example)[:1]:
        tiny_models.llama(root / "deep" / name, layers=12)  # it names layers
    return root


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_of_a_method_runs(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models / ("deep" if name == "passthrough" else "shallow")
    monkeypatch.chdir(folder)
    example = METHODS[name].example
    merged = tiny_models.tensors(mergeloom.merge(example, tmp_path / "out").out)
    given = tiny_models.tensors(folder / MODEL.findall(example)[0])
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    assert merged.keys() >= given.keys()
    changed = [t for t in given if not torch.equal(merged[t], given[t])]
    assert changed, "the recipe copies a model"

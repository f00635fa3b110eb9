from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.types import ModelReference

from .support import good, opened


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("nopo", "with+plus", "with@at", "deep/er/model"):
        (tmp_path / name).mkdir(parents=True)
        save_file({"a": torch.ones(1)}, tmp_path / name / "model.safetensors")
    return tmp_path


def test_what_exists_is_used_literally(here):
    for reference in [
        ModelReference("nopo"),
        ModelReference("~/nopo"),
        ModelReference("./nopo/"),
        ModelReference(f"{here}/nopo"),
        ModelReference("with+plus"),
        ModelReference("with", lora="plus"),  # as a recipe reads "with+plus"
        ModelReference("with", revision="at"),
        ModelReference("deep/er/model"),
        ModelReference("nopo/model.safetensors"),
    ]:
        assert good(reference).label == str(reference)


PLUS = "'+' separates a LoRA; write {model: {path: ...}} for a path with a '+' in it"
AT = "'@' separates a revision; write {model: {path: ...}} for a path with an '@' in it"
LOCAL = "does not exist (looks like a local path)"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (ModelReference("./nope"), f"./nope {LOCAL}. Nearest: ./nopo"),
        (ModelReference("~/nope"), f"~/nope {LOCAL}. Nearest: HERE/nopo"),
        (ModelReference("HERE/nope"), f"HERE/nope {LOCAL}. Nearest: HERE/nopo"),
        (
            ModelReference("HERE/dep/er/model"),
            f"HERE/dep/er/model {LOCAL}. Nearest: HERE/deep/er/model",
        ),
        (ModelReference("a/b/c"), f"a/b/c {LOCAL}"),
        (ModelReference("C:\\models\\x"), f"C:\\models\\x {LOCAL}"),
        (ModelReference("zzz.safetensors"), f"zzz.safetensors {LOCAL}"),
        (ModelReference("HERE/zz", lora="y"), f"HERE/zz+y {LOCAL}. {PLUS}"),
        (ModelReference("HERE/zz", revision="y"), f"HERE/zz@y {LOCAL}. {AT}"),
        (
            ModelReference("nopo", lora="org/lora"),
            "LoRA adapters are not supported yet in this version: nopo+org/lora; merge the adapter "
            "into the model first (peft merge_and_unload)",
        ),
        (
            ModelReference("my model"),
            "my model does not exist, and is no id of the hub either (organisation/name)",
        ),
        (
            ModelReference("with+plos"),
            "with+plos does not exist, and is no id of the hub either (organisation/name). "
            "Nearest: with+plus",
        ),
        (ModelReference(""), "a model has an empty name"),
    ],
)
def test_what_does_not_exist_is_said_with_its_nearest_name(reference, message, here):
    path = reference.path.replace("HERE", str(here))
    reference = ModelReference(path, reference.revision, reference.lora)
    checkpoint, errors, _ = opened(reference, where="models[0]")
    assert checkpoint is None
    assert errors == [f"models[0]: {message}".replace("HERE", str(here))]


def test_the_revision_of_a_folder_is_not_looked_at_and_that_is_said(here):
    checkpoint, errors, warnings = opened(ModelReference("nopo", "v1"))
    assert checkpoint is not None
    assert errors == []
    assert warnings == ["nopo is on this machine: its revision is not looked at"]

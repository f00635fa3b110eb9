"""--verify: the class that will load a result is asked before a weight is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import llama, llama_config, save

import mergeloom
from mergeloom.errors import CheckpointError
from mergeloom.verify import verify

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Three layers of a model that transformers can build, stacked to five."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("verify") / "m"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1,
    )).save_pretrained(folder)  # fmt: skip
    ranges = [[0, 3], [1, 3]]
    return mergeloom.plan({"merge_method": "passthrough", "slices": [
        {"sources": [{"model": str(folder), "layer_range": r}]} for r in ranges]})  # fmt: skip


def test_a_right_plan_is_verified(plan):
    assert verify(plan) == ()


def test_what_would_not_load_is_told(plan):
    with pytest.raises(CheckpointError) as error:
        verify(replace(plan, config={**plan.config, "num_hidden_layers": 6}))
    assert "missing 9 tensors: model.layers.5." in str(error.value)
    with pytest.raises(CheckpointError, match="not known to the class 9 tensors"):
        verify(replace(plan, config={**plan.config, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"of another shape .*\[12, 8\], wanted \[16, 8\]"):
        verify(replace(plan, config={**plan.config, "intermediate_size": 16}))


def test_what_cannot_be_verified_is_said(plan):
    unknown = replace(plan, config={**plan.config, "architectures": ["NoSuchModel"]})
    (told,) = verify(unknown)
    assert "has no class NoSuchModel" in told
    assert verify(replace(plan, config=None))


def test_faults_of_the_donor_itself_are_told_and_no_error(plan, tmp_path):
    save(tmp_path / "m", {**llama(2), "odd.thing": torch.zeros(2)}, llama_config(2))
    own = mergeloom.plan({"merge_method": "linear", "models": [
        {"model": str(tmp_path / "m"), "parameters": {"weight": 1}}]})  # fmt: skip
    (told,) = verify(own)
    assert "as it is: not known to the class 1 tensor: odd.thing" in told

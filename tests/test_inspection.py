"""What `mergeloom inspect` says of a model."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from models import llama, llama_config, save

import mergeloom
from mergeloom.cli.main import mergeloom as program
from mergeloom.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    tensors = {**llama(3), "model.layers.1.mlp.extra.weight": torch.zeros(2, 2),
               "steps": torch.zeros(1, dtype=torch.int64), "odd.thing": torch.zeros(2)}  # fmt: skip
    config = {**llama_config(3), "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    save(tmp_path / "m", tensors, config)
    return tmp_path / "m"


def test_everything_in_a_model_is_accounted_for(folder):
    found = mergeloom.inspect(folder)
    (stack,) = found.stacks
    assert (stack.prefix, stack.length, stack.count_key) == ("model.layers", 3, "num_hidden_layers")
    assert stack.is_main
    assert sorted(layers for _, layers in stack.kinds) == [(0, 2), (1,)]
    assert list(found.embeddings) == ["model.embed_tokens.weight"]
    assert found.tied is (not found.heads)
    assert found.copied == ("steps",)
    assert found.unrecognised == ("odd.thing", "steps")
    assert sum(module.tensors for module in found.modules) == found.tensors
    assert sum(found.dtypes.values()) == found.nbytes
    assert (found.architecture, found.model_type) == ("LlamaForCausalLM", "llama")


def test_the_command_says_it_in_words_and_as_json(folder):
    words = CliRunner().invoke(program, ["inspect", str(folder)])
    assert words.exit_code == 0
    assert "model.layers.0-2 (config num_hidden_layers; module text, main)" in words.output
    assert "not recognised, merged by name (2)" in words.output
    given = json.loads(CliRunner().invoke(program, ["inspect", str(folder), "--json"]).output)
    assert given["stacks"][0]["prefix"] == "model.layers"
    assert given["unrecognised"] == ["odd.thing", "steps"]


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        mergeloom.inspect(tmp_path / "nowhere")

"""GGUF in folders, in parts, with a tokenizer, without the libraries; Llama 3's factors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gguf
import pytest
import torch

from mergeloom.checkpoint.gguf_file.families import llama3_factors

from ..support import opened, read, refused
from . import files

STATE = {
    "model.embed_tokens.weight": torch.randn(files.ROWS, files.HIDDEN),
    "model.norm.weight": torch.ones(files.HIDDEN),
}


def parts(folder: Path) -> list[Path]:
    """A model in two files as llama.cpp splits them."""
    first = files.write(folder / "m-00001-of-00002.gguf", "llama", STATE)
    second = gguf.GGUFWriter(folder / "m-00002-of-00002.gguf", "llama")
    second.add_tensor("output.weight", torch.full((files.ROWS, files.HIDDEN), 2.0).numpy())
    second.write_header_to_file()
    second.write_kv_data_to_file()
    second.write_tensors_to_file()
    second.close()
    return [first, folder / "m-00002-of-00002.gguf"]


def test_a_split_model_is_one(tmp_path):
    first, second = parts(tmp_path)
    (tmp_path / "mmproj-m.gguf").write_bytes(b"GGUF")
    for place in (tmp_path, first):
        checkpoint, errors, _ = opened(place)
        assert errors == []
        assert checkpoint is not None
        assert list(checkpoint.tensors) == [
            "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight",
        ]  # fmt: skip
        assert checkpoint.tensors["lm_head.weight"].files == (second,)
        assert set(read(checkpoint.tensors["lm_head.weight"]).tolist()) == {2.0}
        assert checkpoint.config is not None
        assert checkpoint.config["tie_word_embeddings"] is False
    assert "is a part of a split model. Name its first part" in refused(second)
    second.unlink()
    assert "1 of 2 parts are missing: m-00002-of-00002.gguf" in refused(tmp_path)


def test_several_quantizations_in_a_folder_must_be_told_apart(tmp_path):
    for name in ("m.Q4_K_M.gguf", "m.Q8_0.gguf"):
        files.write(tmp_path / name, "llama", STATE)
    assert "has several weight files and no index: m.Q4_K_M.gguf, m.Q8_0.gguf" in refused(tmp_path)


def test_what_a_folder_has_goes_before_what_is_made(tmp_path):
    files.write(tmp_path / "m.gguf", "llama", STATE)
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = opened(tmp_path)[0]
    assert checkpoint is not None
    assert checkpoint.config == {"model_type": "mine"}
    assert checkpoint.texts == {}
    assert checkpoint.side_files == ("config.json", "tokenizer.json")


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_tokenizer_files_are_made(tmp_path):
    import tokenizers

    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, "he", "<|end|>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.merges": ["h e"], "tokenizer.ggml.token_type": [1] * 95 + [3],
    }  # fmt: skip
    assert len(tokens) == files.ROWS
    path = files.write(tmp_path / "m.gguf", "llama", STATE, metadata=metadata, tokens=tokens)
    checkpoint, errors, warnings = opened(path)
    assert checkpoint is not None
    assert (errors, len(warnings)) == ([], 1)
    assert checkpoint.side_files == ("chat_template.jinja", "tokenizer.json",
                                     "tokenizer_config.json")  # fmt: skip
    assert checkpoint.side_file("chat_template.jinja") == b"{{ messages }}"
    content = checkpoint.side_file("tokenizer.json")
    assert content is not None
    encoded = tokenizers.Tokenizer.from_str(content.decode()).encode("hex<|end|>")
    assert encoded.tokens == ["he", "x", "<|end|>"]
    config = json.loads(checkpoint.side_file("tokenizer_config.json") or b"")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    tokens = [f"t{i}" for i in range(files.ROWS)]
    path = files.write(
        tmp_path / "m.gguf", "llama", STATE, metadata={"tokenizer.ggml.model": "gpt2"},
        tokens=tokens,
    )  # fmt: skip
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    checkpoint, errors, warnings = opened(path)
    assert checkpoint is not None
    assert errors == []
    assert any("Install mergeloom[transformers,gguf]" in warning for warning in warnings)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(path) == (
        "m.gguf is a GGUF file, and the gguf library that reads it is not installed. "
        "Install mergeloom[gguf]"
    )


@pytest.mark.parametrize("factor", [8.0, 32.0, 0.5])
def test_llama_3s_factors_become_rope_scaling(factor, tmp_path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        head_dim=64, rope_theta=5e5, max_position_embeddings=1 << 17, rope_scaling=dict(scaling)
    )
    plain = 1 / 5e5 ** (torch.arange(0, 64, 2) / 64)
    if factor > 1:
        factors = plain / ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
        torch.testing.assert_close(torch.tensor(llama3_factors(scaling, 5e5, 64)), factors)
    else:
        factors = torch.rand(32)  # from no formula
    path = files.write(tmp_path / "m.gguf", "llama", STATE, factors=factors)
    checkpoint, errors, warnings = opened(path)
    assert checkpoint is not None
    assert errors == []
    assert checkpoint.config is not None
    assert checkpoint.config.get("rope_scaling") == (scaling if factor > 1 else None)
    told = [w for w in warnings if "rotary frequencies that config.json has no words for" in w]
    assert len(told) == (0 if factor > 1 else 1)

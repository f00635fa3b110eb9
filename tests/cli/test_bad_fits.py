"""Models that are whole but do not fit each other, and the exact words that say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .models import config, linear, model, second, slices, tokenizer, weights, write_json
from .program import merge, mistakes, refused, run

TOKENS = [f"t{i}" for i in range(16)]
NO_COMMON = "Rows are matched by tokens: put the tokenizers into the models' folders."
CHOICES = (
    "Say which tokens the result has: tokenizer_source: base (the base's), union (all of them) or "
    "the name of a model."
)


def gpt2(folder: Path) -> None:
    folder.mkdir()
    names = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(3)]
    save_file({name: torch.ones(2, 2) for name in names}, folder / "model.safetensors")


def packed(folder: Path) -> None:
    model(folder)
    extra = {"model.layers.0.mlp.up_proj.weight.absmax": torch.ones(2)}
    save_file(weights() | extra, folder / "model.safetensors")


def additive(folder: Path) -> None:
    model(folder, changes={"quantization_config": {"quant_method": "aqlm", "nbits": 2}})


ORIGINAL = "Use the original weights, or dequantize it first with the library that made it"
CUT = "--unsafe-truncate-embeddings cuts all to the smallest."
MISFITS = {
    "quantized in a way that is not read": (
        additive,
        f"./X is quantized (aqlm), which cannot be dequantized here. {ORIGINAL}",
    ),
    "parts of something": (
        packed,
        "./X has parts of quantized weights in a format that is not known: "
        f"model.layers.0.mlp.up_proj.weight.absmax. {ORIGINAL}",
    ),
    "hidden size": (
        lambda x: model(x, hidden=16),
        "31 tensors of ./X have other shapes than ./A's (model.embed_tokens.weight: [12, 16] vs "
        "[12, 8]); hidden_size 16 vs 8. Models of different sizes cannot be merged.",
    ),
    "layers": (
        lambda x: model(x, layers=6),
        "./A has 4 layers, ./X has 6. Use slices with layer_range to say which layers meet.",
    ),
    "another kind of model": (
        gpt2,
        "no tensor of ./X (transformer.h.0.attn.c_attn.weight, ...) is in ./A. "
        "Only models of the same kind can be merged.",
    ),
    "vocabulary without tokenizer": (
        lambda x: model(x, rows=14),
        "./A has 12 vocabulary rows, ./X 14 (model.embed_tokens.weight). " + f"{NO_COMMON} {CUT}",
    ),
    "vocabulary": (
        lambda x: model(x, rows=14, tokens=TOKENS[2:16]),
        "12 token ids of ./X mean other tokens than in ./A (id 0 is 't2', not 't0'); 10 of 12 and "
        f"14 tokens are shared. {CHOICES}",
    ),
    "other tokens": (
        lambda x: model(x, tokens=["x", "y", *TOKENS[2:12]]),
        "2 token ids of ./X mean other tokens than in ./A (id 0 is 'x', not 't0'); 10 of 12 and "
        f"12 tokens are shared. {CHOICES}",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_model_that_does_not_fit(case, models):
    make, message = MISFITS[case]
    make(models / "X")
    if "shared" in message:
        write_json(models / "A" / "tokenizer.json", tokenizer(TOKENS[:12]))
    assert refused(linear("./A", "./X")) == second(message)


@pytest.mark.parametrize("listed", [False, True])
def test_slices_of_models_of_different_sizes(listed, models):
    """Also where config.json lists the kind of every layer, as Qwen's does."""
    model(models / "A", changes={"layer_types": ["full_attention"] * 4} if listed else {})
    model(models / "X", hidden=16)
    recipe = slices("passthrough", "./A, layer_range: [0, 2]", "./X, layer_range: [0, 2]")
    assert refused(recipe) == [
        "slices[1].sources[0] (line 4): 16 tensors of ./X have other shapes than ./A's "
        "(model.layers.0.input_layernorm.weight: [16] vs [8]); hidden_size 16 vs 8. "
        "Models of different sizes cannot be merged."
    ]


def test_slices_of_models_with_different_vocabularies(models):
    model(models / "X", rows=14)
    recipe = slices("passthrough", "./A, layer_range: [0, 2]", "./X, layer_range: [0, 2]")
    assert refused(recipe) == [
        "slices[1].sources[0] (line 4): ./A has 12 vocabulary rows, ./X 14 (lm_head.weight). "
        + NO_COMMON
    ]


def test_slices_of_a_model_whose_config_counts_other_layers(models):
    model(models / "A", changes={"num_hidden_layers": 9})
    assert refused(slices("passthrough", "./A, layer_range: [0, 2]")) == [
        "slices[0] (line 3): ./A has 4 layers (model.layers.*), but its config.json does not say "
        "so, so the new number cannot be written there"
    ]


def test_unsafe_truncation_does_what_the_message_says(models):
    model(models / "X", rows=14)
    done = merge(linear("./A", "./X"), "--unsafe-truncate-embeddings")
    assert (done.code, done.lines[:-1]) == (0, [])


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"vocab": {"a": "x"}}}'])
def test_a_tokenizer_that_is_none(content, models):
    write_json(models / "A" / "tokenizer.json", tokenizer(TOKENS[:12]))
    (models / "B" / "tokenizer.json").write_text(content)
    wrong = "has no vocabulary of tokens and ids where a tokenizer.json has one. "
    wrong += "Download it again, or remove it to merge without a tokenizer."
    if content == "{":
        wrong = "is not valid JSON: Expecting property name enclosed in double quotes: "
        wrong += "line 1 column 2 (char 1)"
    assert refused(linear("./A", "./B")) == [f"B/tokenizer.json: {wrong}"]


def test_config_json_may_be_missing_but_its_layers_are_needed_to_slice(models):
    (models / "A" / "config.json").unlink()
    assert merge(linear("./A", "./B")).code == 0
    write_json(models / "A" / "config.json", config() | {"num_hidden_layers": None})
    assert run("check", "r.yml").code == 0


def test_a_nan_names_the_tensor_and_its_sources(models):
    broken = {name: tensor * float("nan") for name, tensor in weights().items()}
    save_file(broken, models / "B" / "model.safetensors")
    done = merge(linear("./A", "./B"), "--threads", 1)
    assert done.code == 2
    assert not (models / "out").exists()
    assert mistakes(done) == [
        "model.embed_tokens.weight: 96 of 96 elements are NaN or infinite after linear in bfloat16 "
        "from ./A:model.embed_tokens.weight, ./B:model.embed_tokens.weight. Look for a damaged "
        "input or too large a weight, choose a wider dtype, or continue with --allow-nonfinite."
    ]
    again = merge(None, "--allow-nonfinite")
    assert again.code == 0
    assert "warning: lm_head.weight: 96 elements are NaN or infinite" in again.lines

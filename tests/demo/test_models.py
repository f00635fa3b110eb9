"""The shipped models: real checkpoints, with the skills their names promise."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergeloom.demo import skills
from mergeloom.demo.llama import forward, load
from mergeloom.demo.run import MODELS

NAMES = ("base", *skills.SKILLS)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_every_tensor_and_computes_the_same_logits(name):
    theirs, info = AutoModelForCausalLM.from_pretrained(
        MODELS / name, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ours = load(MODELS / name)
    tokens, _ = skills.encode(skills.held_out_problems("sort", 8))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        logits = forward(ours.config, ours.weights, tokens)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_round_trips(name):
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    text = "sort the letters 0123456789="
    ids = tokenizer(text)["input_ids"]
    assert ids == [skills.VOCABULARY[token] for token in (skills.BOS, *text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        skills.BOS,
        skills.EOS,
        skills.PAD,
    )
    assert len(tokenizer) == len(skills.VOCABULARY)
    assert tokenizer("É")["input_ids"][1] == skills.VOCABULARY[skills.UNK]


def test_the_tokenizers_are_the_same_file():
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert len({(MODELS / name / file).read_bytes() for name in NAMES}) == 1


def test_transformers_generates_the_answer():
    model = AutoModelForCausalLM.from_pretrained(MODELS / "add", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "add")
    problem = skills.held_out_problems("add", 1)[0]
    inputs = tokenizer(problem.question, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, do_sample=False)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    assert text == problem.question + problem.answer
    assert text == problem.question + skills.generate(load(MODELS / "add"), problem.question)


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_each_specialist_has_its_own_skill_only(skill):
    accuracy = {name: skills.score(MODELS / name, skill) for name in NAMES}
    assert accuracy.pop(skill) > 0.9
    assert all(other < 0.2 for other in accuracy.values()), accuracy


def test_the_models_are_small_and_the_weights_bfloat16():
    for name in NAMES:
        assert 1e6 < (MODELS / name / "model.safetensors").stat().st_size < 3e6
        assert json.loads((MODELS / name / "config.json").read_text())["dtype"] == "bfloat16"

"""The JSON Schema for editors agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from recipe_words import METHODS

from mergeloom.recipe import json_schema

SHAPES = sorted((Path(__file__).parent / "shapes").glob("*.yml"))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yml"))
SCHEMA = json_schema(METHODS)
CHECK = jsonschema.Draft202012Validator(SCHEMA)
GOOD = {"models": ["A"], "merge_method": "linear"}


def test_it_is_a_schema_and_plain_json():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["$id"]
    assert SCHEMA["title"] == "mergeloom recipe"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    for example in SCHEMA["examples"]:
        CHECK.validate(example)


@pytest.mark.parametrize("path", [p for p in SHAPES if "wrong" not in p.name], ids=lambda p: p.name)
@pytest.mark.parametrize("methods", [METHODS, None])
def test_the_shapes_are_valid(path, methods):
    check = jsonschema.Draft202012Validator(json_schema(methods))
    for document in yaml.safe_load_all(path.read_text()):
        check.validate(document)


def test_the_examples_are_valid():
    for path in EXAMPLES:
        for document in yaml.safe_load_all(path.read_text()):
            CHECK.validate(document)


def test_every_key_is_described():
    for name, definition in SCHEMA["$defs"].items():
        for branch in definition.get("anyOf", [definition]):
            if "description" in branch and "properties" in branch and name != "Parameters":
                for key, value in branch["properties"].items():
                    assert value.get("description"), (name, key)
    assert all(value.get("description") for value in SCHEMA["properties"].values())
    parameters = SCHEMA["$defs"]["Parameters"]["properties"]
    assert parameters["density"]["description"] == "what it does"
    assert parameters["density"]["anyOf"][0]["anyOf"][0] == {
        "type": "number", "minimum": 0, "maximum": 1,
    }  # fmt: skip
    assert SCHEMA["$defs"]["Method"]["anyOf"][0] == {"enum": list(METHODS)}


ACCEPTED = [
    {"merge_method": "plugin_method"},
    {"slices": []},
    {"parameters": None, "dtype": None, "tokenizer": None},
    {"parameters": {"weight": "0.5", "normalize": "on", "density": "1e-3"}},
    {"parameters": {"weight": {"value": [1, 0]}, "rescale": True, "own": [1, 2]}},
    {"dtype": "torch.bfloat16", "out_dtype": "BF16"},
    {"models": [{"model": {"model": {"path": "a+b"}, "lora": "L"}}]},
    {"chat_template": {"model": "A"}},
    {"include": "a*", "exclude": ["b"]},
    {"tokenizer": {"tokens": {"a": None}}},
    {"SCALE": 0.7},
]


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_accepted(change):
    CHECK.validate({**GOOD, **change})


REFUSED = [
    {"dtpe": "bfloat16"},
    {"dype": "float32"},
    {"merge-method": "linear"},
    {"tokeniser": {}},
    {"select_topk": 0.1},
    {"weight": 1},
    {"models": []},
    {"slices": [{"sources": []}]},
    {"models": [{"model": "A", "weight": 1}]},
    {"models": [{"parameters": {}}]},
    {"parameters": {"density": 53}},
    {"parameters": {"normalize": 0.5}},
    {"parameters": {"max_iter": 1.5}},
    {"parameters": {"weight": None}},
    {"parameters": {"weight": [1, {"value": 2}]}},
    {"parameters": {"weight": {"filer": "a", "value": 2}}},
    {"parameters": {"dtype": "bfloat16"}},
    {"dtype": "bfloat"},
    {"tokenizer": {"token": {}}},
    {"tokenizer": {"tokens": {"a": {"source": {"kind": "zer"}}}}},
    {"chat_template": "chatmll"},
    {"models": [{"model": {"path": "a", "rev": "b"}}]},
]


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_refused(change):
    assert not CHECK.is_valid({**GOOD, **change})


@pytest.mark.parametrize("gone", ["models", "merge_method"])
def test_required(gone):
    assert not CHECK.is_valid({key: value for key, value in GOOD.items() if key != gone})


def test_the_published_wrong_one_is_refused():
    assert not CHECK.is_valid(yaml.safe_load(SHAPES[-1].read_text()))

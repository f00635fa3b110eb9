"""Valid recipes load the same from text and mapping; broken ones raise only RecipeError."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jsonschema
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_words import METHODS

from mergeloom.errors import RecipeError
from mergeloom.recipe import json_schema, load_recipe

TEXTS = [path.read_text() for path in sorted((Path(__file__).parent / "shapes").glob("*.yml"))]
CHECK = jsonschema.Draft202012Validator(json_schema(METHODS))

MODEL = st.sampled_from(
    ["org/A", "org/B@v1", "org/C+org/L", "./here", "G:\\x", {"model": {"path": "a+b"}, "lora": "l"}]
)
NUMBER = st.floats(0, 1) | st.integers(0, 1)


def setting(scalar):
    entry = st.fixed_dictionaries(
        {"value": scalar | st.lists(scalar, min_size=1, max_size=3)},
        optional={"filter": st.sampled_from(["mlp", "*", "re:a|b", "glob:*x*"])},
    )
    return scalar | st.lists(scalar, max_size=4) | entry | st.lists(entry, min_size=1, max_size=3)


PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "weight": setting(NUMBER | st.sampled_from(["0.5", "1e-10", True])),
        "density": setting(NUMBER),
        "normalize": setting(st.booleans() | st.sampled_from(["on", "false", 0, 1])),
        "rescale": setting(st.sampled_from([True, "density", "false"])),
    },
)
LEVEL = PARAMETERS | st.none()
ENTRY = st.fixed_dictionaries({"model": MODEL}, optional={"parameters": LEVEL})
RANGE = st.integers(0, 9).flatmap(
    lambda start: st.sampled_from([[start, start], [start, start + 4], [start, None], [start]])
)
SOURCE = st.fixed_dictionaries(
    {"model": MODEL, "layer_range": RANGE}, optional={"parameters": LEVEL}
)
SLICE = st.fixed_dictionaries(
    {"sources": st.lists(SOURCE, min_size=1, max_size=3)},
    optional={"base_model": MODEL, "parameters": LEVEL},
)
MODELS = st.lists(ENTRY | st.just("org/D"), min_size=1, max_size=3)
SLICES = st.lists(SLICE, min_size=1, max_size=3)
MODULES = st.dictionaries(
    st.sampled_from(["default", "text", "vision tower"]),
    st.fixed_dictionaries({"models": MODELS}, optional={"parameters": LEVEL})
    | st.fixed_dictionaries({"slices": SLICES}),
    min_size=1,
)
TOKEN = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")),
    min_size=1,
    max_size=5,
)
TOKENIZER = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["union", "base"]) | MODEL,
        "pad_to_multiple_of": st.integers(1, 64),
        "tokens": st.dictionaries(
            TOKEN,
            st.fixed_dictionaries(
                {}, optional={"source": MODEL | st.just({"kind": "zero"}), "force": st.booleans()}
            ),
            max_size=3,
        ),
    },
)
SECTION = (
    st.fixed_dictionaries({"models": MODELS})
    | st.fixed_dictionaries({"slices": SLICES})
    | st.fixed_dictionaries({"modules": MODULES})
)
REST = st.fixed_dictionaries(
    {"merge_method": st.just("dare_ties")},
    optional={
        "base_model": MODEL,
        "parameters": LEVEL,
        "dtype": st.sampled_from(["bf16", "float32", None]),
        "out_dtype": st.just("torch.float16"),
        "tokenizer": TOKENIZER,
        "chat_template": st.sampled_from(["auto", "{{ messages[0].content }} and more"]),
        "name": st.sampled_from(["one", "org/two", "2024"]),
        "include": st.sampled_from(["*.mlp.*", ["re:a", "b"]]),
        "input_model_parameters": st.dictionaries(st.just("org/A"), PARAMETERS),
    },
)
RECIPES = st.builds(lambda a, b: {**a, **b}, SECTION, REST)


@settings(max_examples=60, deadline=None)
@given(RECIPES, st.booleans())
def test_text_and_mapping_give_equal_recipes(data, flow):
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=flow)
    from_text = load_recipe(text, methods=METHODS)
    from_mapping = load_recipe(data, methods=METHODS)
    assert replace(from_text, text="", lines={}) == replace(from_mapping, text="", lines={})
    assert from_text.text == text
    assert replace(load_recipe(from_mapping.text, methods=METHODS), lines={}) == from_mapping
    CHECK.validate(data)


PIECES = st.sampled_from(
    "\n \t : - [ ] { } & * ! | > ' \" % @ ` # , ? ~ << &a *a !!int !!str --- ... \n- \n  : 0 -1 "
    "1e999 .inf null true \\ \x00 \u2028 ﻿ é 😀 weight: parameters: value filter".split(" ")
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES | st.text(max_size=3)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(TEXTS), EDITS, st.booleans())
def test_a_damaged_recipe_raises_only_recipe_errors(text, edits, lenient):
    for place, length, piece in edits:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + length :]
    with suppress(RecipeError):
        load_recipe(text + "\n", methods=METHODS, lenient=lenient)


KEYS = st.sampled_from(
    "models slices modules base_model parameters merge_method dtype tokenizer tokens source "
    "sources model layer_range weight name include input_model_parameters chat_template path "
    "default lora value filter tokenizer_source kind".split()
)
SCALARS = st.sampled_from([None, True, 0, -1, 10**400, 0.5, float("nan"), "", "a", "a+b+c", "re:("])
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, NESTED, max_size=5), st.booleans())
def test_any_mapping_raises_only_recipe_errors(data, lenient):
    with suppress(RecipeError):
        load_recipe(data, methods=METHODS, lenient=lenient)

"""The JSON Schema that editors use to complete, explain and check recipes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mergeloom.recipe import fields
from mergeloom.recipe.parameters import MethodWords, ParameterWords, known_parameters
from mergeloom.recipe.schema import LEVELS, TOP_LEVEL_KEYS, RecipeFile
from mergeloom.recipe.structure import Level

SCHEMA_ID = "https://mergeloom.github.io/schema/recipe.json"

_NUMBER_TEXT = {"type": "string", "pattern": r"^\s*[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"}
_TRUTH = {
    "anyOf": [
        {"type": "boolean"},
        {"enum": [0, 1]},
        {"type": "string", "pattern": "^(?i:true|false|yes|no|on|off|0|1)$"},
    ]
}
_ANY_SCALAR = {"type": ["number", "boolean", "string"]}
_LOCATED = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"path": {"type": "string"}, "revision": {"type": ["string", "null"]}},
            "required": ["path"],
            "additionalProperties": False,
        },
    ]
}


def json_schema(methods: Mapping[str, MethodWords] | None = None) -> dict[str, Any]:
    """The schema of one recipe document, as JSON Schema 2020-12.

    Keys that are one slip away from a known one are refused at the top level; others are
    allowed there, because a schema cannot see whether a key holds an anchor that other values
    repeat. ``load_recipe`` can, and is stricter.

    Args:
        methods: method names → their declarations; they become completions, and their
            parameters get descriptions and ranges. Other method names stay possible.
    """
    found = RecipeFile.schema()
    parameters = known_parameters(methods)
    definitions = {level.__name__: _level(level) for level in LEVELS}
    definitions.update(_definitions(list(methods or {}), parameters))
    found["additionalProperties"] = {"description": "A helper key that holds YAML anchors."}
    found["propertyNames"] = {
        "not": {
            "anyOf": [
                {"enum": sorted(parameters)},
                {"pattern": _near_misses(TOP_LEVEL_KEYS)},
            ]
        }
    }
    found["oneOf"] = [
        {"required": [key], "properties": {key: {bound: 1}}}
        for key, bound in (
            ("models", "minItems"),
            ("slices", "minItems"),
            ("modules", "minProperties"),
        )
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "mergeloom recipe",
        "description": "How to merge language models: inputs, method, parameters and output.",
        **{k: v for k, v in found.items() if k != "description"},
        "examples": _examples(),
        "$defs": dict(sorted(definitions.items())),
    }


def _level(level: type[Level]) -> dict[str, Any]:
    """A mapping, or the plain text that may stand for it if no other key is required."""
    found = level.schema()
    if level.bare and found["required"] == [level.bare]:
        return {"anyOf": [{"type": "string", "minLength": 1}, found]}
    return found


def _definitions(
    methods: list[str], parameters: Mapping[str, ParameterWords]
) -> dict[str, dict[str, Any]]:
    """The schemas of values that are referred to by name."""
    method: dict[str, Any] = {"type": "string", "minLength": 1}
    if methods:
        method = {"anyOf": [{"enum": methods}, method]}
    spellings = [*fields.DTYPE_NAMES]
    return {
        "Method": method,
        "Reference": {
            "description": "path[@revision][+lora[@lora_revision]], or a mapping.",
            "examples": ["org/Model", "org/Model@v2+org/adapter", "./folder"],
            "anyOf": [{"type": "string", "minLength": 1}, _reference_mapping()],
        },
        "DType": {
            "anyOf": [
                {"enum": spellings},
                {"type": "string", "pattern": f"^(?i:(torch\\.)?({'|'.join(spellings)}))$"},
            ]
        },
        "LayerRange": _layer_range(),
        "Layer": {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+$"}]
        },
        "TokenizerSource": {
            "anyOf": [{"enum": ["union", "base"]}, {"$ref": "#/$defs/Reference"}, {"type": "null"}]
        },
        "TokenSource": _token_source(),
        "ChatTemplate": {
            "anyOf": [
                {"enum": list(fields.CHAT_TEMPLATES)},
                {"type": "string", "minLength": 20, "pattern": r"\{"},
                {"$ref": "#/$defs/Reference", "type": "object"},
                {"type": "null"},
            ]
        },
        "Patterns": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
                {"type": "null"},
            ]
        },
        "Renames": {
            "type": ["object", "null"],
            "additionalProperties": {"type": ["string", "null"]},
        },
        "Parameters": {
            "type": "object",
            "properties": {name: _parameter(p) for name, p in parameters.items()},
            # A key of the top level is not a parameter, unless a method says so.
            "propertyNames": {"not": {"enum": [k for k in TOP_LEVEL_KEYS if k not in parameters]}},
            "additionalProperties": _setting(_ANY_SCALAR),
        },
    }


def _layer_range() -> dict[str, Any]:
    return {
        "description": "[start, end): the end is exclusive; null means the last layer.",
        "type": "array",
        "prefixItems": [
            {"$ref": "#/$defs/Layer"},
            {"anyOf": [{"$ref": "#/$defs/Layer"}, {"type": "null"}]},
        ],
        "minItems": 1,
        "maxItems": 2,
        "examples": [[0, 32], [8, None]],
    }


def _reference_mapping() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": {
            "model": _LOCATED,
            "path": {"type": "string", "minLength": 1},
            "revision": text,
            "lora": {"anyOf": [_LOCATED, {"type": "null"}]},
            "override_architecture": text,
        },
        "oneOf": [{"required": ["model"]}, {"required": ["path"]}],
        "additionalProperties": False,
    }


def _token_source() -> dict[str, Any]:
    model_token = {
        "type": "object",
        "properties": {
            "kind": {"const": "model_token"},
            "model": {"$ref": "#/$defs/Reference"},
            "token": {"type": ["string", "null"]},
            "token_id": {"type": ["integer", "null"], "minimum": 0},
        },
        "required": ["kind", "model"],
        "additionalProperties": False,
    }
    bare = {
        "type": "object",
        "properties": {"kind": {"enum": ["zero", "mean_of_subwords"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"$ref": "#/$defs/Reference"}, model_token, bare, {"type": "null"}]}


def _parameter(parameter: ParameterWords) -> dict[str, Any]:
    if parameter.kind == "bool":
        scalar: dict[str, Any] = _TRUTH
    elif parameter.kind == "choice":
        choices = list(parameter.choices or ())
        loose = [_TRUTH] if {"true", "false"} & {str(c).lower() for c in choices} else []
        scalar = {"anyOf": [{"enum": choices}, *loose]}
    else:
        number: dict[str, Any] = {"type": "integer" if parameter.kind == "int" else "number"}
        if parameter.low is not None:
            number["minimum"] = parameter.low
        if parameter.high is not None:
            number["maximum"] = parameter.high
        truth = [{"type": "boolean"}] if parameter.kind == "float" else []
        scalar = {"anyOf": [number, _NUMBER_TEXT, *truth]}
    return {"description": parameter.help, **_setting(scalar)}


def _setting(scalar: dict[str, Any]) -> dict[str, Any]:
    """A scalar, a gradient, a condition, or a list of conditions."""
    gradient = {"type": "array", "items": scalar}
    condition = {
        "type": "object",
        "properties": {
            "filter": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Part of a tensor's name, glob:..., re:..., or * for all.",
            },
            "value": {"anyOf": [scalar, {**gradient, "minItems": 1}]},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"anyOf": [scalar, gradient, condition, {"type": "array", "items": condition}]}


def _near_misses(words: Iterable[str]) -> str:
    """A pattern of everything one slip away from a word: a letter more, less, other or swapped.

    ``-`` for ``_`` is a slip as well, however many there are.
    """
    misses: set[str] = set()
    for word in words:
        near = {re.escape(word.replace("_", "-")), re.escape(word.replace("_", ""))}
        for i in range(len(word)):
            before, after = re.escape(word[:i]), re.escape(word[i + 1 :])
            near |= {before + after, f"{before}[^{re.escape(word[i])}]{after}"}
            near.add(f"{before}.{re.escape(word[i:])}")
            if word[i : i + 1] != word[i + 1 : i + 2] and i + 1 < len(word):
                swapped = word[i + 1] + word[i]
                near.add(before + re.escape(swapped) + re.escape(word[i + 2 :]))
        near.add(re.escape(word) + ".")
        near.discard(re.escape(word))
        misses |= near
    exact = "|".join(re.escape(word) for word in words)
    return f"^(?!(?:{exact})$)(?:{'|'.join(sorted(misses))})$".replace(r"\-", "-")


def _examples() -> list[dict[str, Any]]:
    return [
        {
            "merge_method": "slerp",
            "base_model": "org/A",
            "models": [{"model": "org/A"}, {"model": "org/B"}],
            "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]},
            "dtype": "bfloat16",
        },
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "org/A", "layer_range": [0, 24]}]},
                {"sources": [{"model": "org/B", "layer_range": [8, 32]}]},
            ],
            "dtype": "bfloat16",
        },
    ]

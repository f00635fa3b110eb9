"""Edits of raw config.json: only what must change changes, unknown keys and order stay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mergeloom.architecture.stacks import family
from mergeloom.types import DTYPES

TIE = "tie_word_embeddings"
DTYPE_KEYS = ("torch_dtype", "dtype")
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The dtype under the key the donor used, in nested scopes too; else ``torch_dtype``.

    The configs of diffusers, which have a ``_class_name``, know no dtype.
    """
    result = copy.deepcopy(dict(config))
    name = DTYPES[dtype].torch_name
    if not _set_everywhere(result, DTYPE_KEYS, name) and "_class_name" not in result:
        result["torch_dtype"] = name
    return result


def with_tying(config: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """``tie_word_embeddings`` in every scope that has it, and at the top when it must be false.

    Many classes default to true, so an untied model without the key needs it written.
    """
    result = copy.deepcopy(dict(config))
    if not _set_everywhere(result, (TIE,), tied) and not tied:
        result[TIE] = False
    return result


def with_values(config: Mapping[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Every one of ``keys`` that the config has, at any depth, set to ``value``."""
    result = copy.deepcopy(dict(config))
    _set_everywhere(result, keys, value)
    return result


def with_vocabulary(config: Mapping[str, Any], sizes: Mapping[int, int]) -> dict[str, Any]:
    """Vocabulary sizes of the text model replaced: old number of rows → new number of rows.

    Vision and audio scopes have vocabularies of their own and stay, as does every size that is
    not among the old ones.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    _set_sizes(result, sizes)
    return result


def _set_sizes(scope: dict[str, Any], sizes: Mapping[int, int]) -> None:
    for key, old in scope.items():
        if isinstance(old, dict) and family(key) == "text":
            _set_sizes(old, sizes)
        elif "vocab" in key and isinstance(old, int) and not isinstance(old, bool) and old in sizes:
            scope[key] = sizes[old]


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys that describe quantized weights, at any depth."""
    return {
        key: without_quantization(value) if isinstance(value, Mapping) else copy.deepcopy(value)
        for key, value in config.items()
        if not (key in QUANTIZATION_KEYS and isinstance(value, Mapping | None))
    }


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """The name of the format its weights are quantized in, None when they are not."""
    for scope in [config, *(v for v in config.values() if isinstance(v, Mapping))]:
        for key in QUANTIZATION_KEYS:
            settings = scope.get(key)
            if isinstance(settings, Mapping):
                return str(settings.get("quant_method", key))
    return None


def says_tied(config: Mapping[str, Any]) -> bool | None:
    """The model's own word on tied embeddings, None when the config has no such key."""
    scopes = [config, *(v for v in config.values() if isinstance(v, Mapping))]
    said = [bool(s[TIE]) for s in scopes if TIE in s]
    return said[0] if said else None


def _set_everywhere(scope: dict[str, Any], keys: tuple[str, ...], value: Any) -> bool:
    """Set every one of ``keys`` that exists at any depth of nested mappings."""
    found = False
    for key, old in scope.items():
        if key in keys:
            scope[key] = value
            found = True
        elif isinstance(old, dict):
            found = _set_everywhere(old, keys, value) or found
    return found

"""Model references: ``path[@revision][+lora[@lora_revision]]`` or a mapping."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergeloom.recipe.words import with_guess
from mergeloom.types import ModelReference

_KEYS = ("model", "path", "revision", "lora", "override_architecture")
_ROOT = re.compile(r"[A-Za-z]:[\\/]+|[\\/]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HUB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)")
_PLUS = "'+' separates a LoRA; write {model: {path: ...}}"
_AT = "'@' separates a revision; write {model: {path: ..., revision: ...}}"


def parse_reference(text_or_mapping: str | Mapping[str, Any]) -> ModelReference:
    """Read a model reference.

    A text that is an existing path is that path, whatever characters it holds. Otherwise one
    ``+`` separates a LoRA, and one ``@`` in each part a revision. The mapping form is
    ``{model, lora, override_architecture}``, where ``model`` and ``lora`` are texts or
    ``{path, revision}``; ``{path, revision}`` alone is a model too. A ``path`` is never split.

    Raises:
        ValueError: with one sentence saying what is wrong.
    """
    if isinstance(text_or_mapping, Mapping):
        return _from_mapping(text_or_mapping)
    text = _text(text_or_mapping, "a model")
    if os.path.exists(text):
        return ModelReference(_without_slash(text))
    pieces = text.split("+")
    if len(pieces) > 2:
        raise ValueError(f"{text!r} holds more than one '+'. {_PLUS}")
    path, revision = _part(pieces[0], "model")
    if len(pieces) == 1:
        return ModelReference(path, revision)
    return ModelReference(path, revision, *_part(pieces[1], "LoRA"))


def _text(value: object, what: str) -> str:
    """A non-empty text without control characters."""
    if not isinstance(value, str):
        if value is None:
            raise ValueError(f"{what} is wanted, and nothing is written")
        if isinstance(value, bool | int | float):
            raise ValueError(f"{value!r} is not text; put it in quotes if it is {what}")
        raise ValueError(f"{what} is a text or a mapping, not a {type(value).__name__}")
    text = value.strip()
    if not text:
        raise ValueError(f"{what} is wanted, and the text is empty")
    if _CONTROL.search(text):
        raise ValueError(
            f"{text!r} holds a control character; in double quotes a backslash starts an escape, "
            "so write Windows paths in single quotes"
        )
    address = _HUB_ADDRESS.match(text)
    if address:
        raise ValueError(f"{text!r} is a web address; write {address[1]}")
    return text


def _without_slash(path: str) -> str:
    """``org/A/`` → ``org/A``; a root stays what it is."""
    if _ROOT.fullmatch(path):
        return path
    return path.rstrip("/\\" if "\\" in path else "/")


def _part(text: str, what: str) -> tuple[str, str | None]:
    """``path[@revision]``; an existing path is taken as it is."""
    text = text.strip()
    if not text:
        raise ValueError(f"a {what} is wanted on both sides of '+', and one is empty. {_PLUS}")
    if os.path.exists(text):
        return _without_slash(text), None
    path, at, revision = text.partition("@")
    if "@" in revision:
        raise ValueError(f"{text!r} holds more than one '@'. {_AT}")
    if at and not (path.strip() and revision.strip()):
        raise ValueError(f"{text!r} has nothing on one side of '@'. {_AT}")
    return _without_slash(path.strip()), revision.strip() or None


def _from_mapping(found: Mapping[str, Any]) -> ModelReference:
    _refuse_unknown(found, _KEYS)
    if ("model" in found) == ("path" in found):
        raise ValueError("a model written as a mapping has one of the keys 'model' and 'path'")
    if "path" not in found and "revision" in found:
        raise ValueError(
            "'revision' stands beside 'path': write {model: {path: ..., revision: ...}}"
        )
    lora = found.get("lora")
    if isinstance(found.get("model"), str) and lora is None:
        model = parse_reference(found["model"])
    else:
        given = {k: found[k] for k in ("path", "revision") if k in found}
        base = _located(given if "path" in found else found["model"], "model")
        model = ModelReference(*base, *(_located(lora, "LoRA") if lora is not None else ()))
    architecture = found.get("override_architecture")
    if architecture is not None:
        architecture = _text(architecture, "an architecture")
    return replace(model, override_architecture=architecture)


def _located(value: object, what: str) -> tuple[str, str | None]:
    """A text ``path[@revision]`` or ``{path, revision}``."""
    if not isinstance(value, Mapping):
        text = _text(value, f"a {what}")
        if "+" in text and not os.path.exists(text):
            raise ValueError(f"{text!r} holds a '+'. {_PLUS}")
        return _part(text, what)
    _refuse_unknown(value, ("path", "revision"))
    if "path" not in value:
        raise ValueError(f"a {what} written as a mapping needs the key 'path'")
    revision = value.get("revision")
    if revision is not None:
        revision = _text(revision, "a revision")
    return _without_slash(_text(value["path"], "a path")), revision


def _refuse_unknown(found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            message = f"unknown key {key!r} in a model reference"
            raise ValueError(with_guess(message, str(key), known))

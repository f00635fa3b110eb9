"""pydantic's errors about structure, said in the recipe's words and with its lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mergeloom.errors import Problems
from mergeloom.recipe.schema import TOP_LEVEL_KEYS, RecipeFile, level_of
from mergeloom.recipe.words import kind_of, nearest_match
from mergeloom.recipe.yaml_reader import join

Location = tuple[str | int, ...]

_REQUIRED = {
    "merge_method": "is required: the name of a merge method",
    "model": "is required: a folder, a file or a hub id",
    "layer_range": "is required in a slice: [start, end), counted from 0, the end is exclusive",
    "sources": "is required: the models and layers of the slice",
}


def path_of(location: Iterable[str | int]) -> str:
    """``("models", 0, "model")`` → ``models[0].model``."""
    path = ""
    for key in location:
        path = join(path, key)
    return path


def line_of(lines: Mapping[str, int], where: str) -> int | None:
    """The line of a recipe path, or of its nearest parent that has one."""
    while where:
        if where in lines:
            return lines[where]
        cut = max(where.rfind("."), where.rfind("["))
        where = where[:cut] if cut > 0 else ""
    return None


def validated(
    data: dict[str, Any],
    lines: Mapping[str, int],
    parameter_names: frozenset[str],
    problems: Problems,
    lenient: bool,
) -> tuple[RecipeFile | None, set[str]]:
    """The structure of a document, or None with every mistake in ``problems``.

    When ``lenient``, keys that are not known are taken out of ``data`` with a warning.

    Returns:
        The structure and the paths that misspelt keys, told as errors, were probably meant to
        be; that those are missing need not be told as well.
    """
    meant: set[str] = set()
    while True:
        try:
            return RecipeFile.model_validate(data), meant
        except ValidationError as error:
            details = error.errors(include_url=False)
        unknown = [d["loc"] for d in details if d["type"] == "extra_forbidden"]
        report = problems.warn if lenient else problems.error
        for location in unknown:
            message, suggestion = unknown_key(location, data, parameter_names)
            if suggestion and not lenient:
                meant.add(path_of((*location[:-1], suggestion)))
            where = path_of(location)
            ignored = "; it is ignored" if lenient else ""
            report(where, message + ignored, line=line_of(lines, where))
        if lenient and unknown:
            for location in unknown:
                del _dig(data, location[:-1])[location[-1]]
            continue
        for detail in details:
            if detail["type"] != "extra_forbidden":
                _report(detail, lines, meant, problems)
        return None, meant


def _dig(data: Any, location: Location) -> Any:
    for key in location:
        data = data[key]
    return data


def unknown_key(
    location: Location, data: dict[str, Any], parameter_names: frozenset[str]
) -> tuple[str, str]:
    """What to say of a key that does not belong, and the key of its level it probably means."""
    key = str(location[-1])
    level = level_of(location[:-1])
    known = tuple(level.model_fields) if level else ()
    siblings = _dig(data, location[:-1])
    if "parameters" in known and key in parameter_names:
        if "parameters" in siblings and siblings["parameters"] is None:
            return "belongs under parameters: (indent it)", ""
        return f"belongs under parameters: (write parameters: {{{key}: ...}})", ""
    if level is not RecipeFile and key in TOP_LEVEL_KEYS:
        return f"{key} is a top-level key", ""
    near = nearest_match(key, known)
    if near:
        return f"unknown key, did you mean {near}?", near
    inner = nearest_match(key, parameter_names) if "parameters" in known else None
    if inner:
        return f"unknown key, did you mean parameters: {{{inner}: ...}}?", ""
    return f"unknown key; the keys here are {', '.join(known)}", ""


def _report(
    detail: ErrorDetails,
    lines: Mapping[str, int],
    meant: set[str],
    problems: Problems,
) -> None:
    where = path_of(detail["loc"])
    kind, hint = detail["type"], ""
    context = detail.get("ctx") or {}
    if kind == "recipe":
        where += context["suffix"]
        message = context["text"]
    elif kind == "missing":
        if where in meant:
            return
        message = _REQUIRED.get(str(detail["loc"][-1]), "is required")
    elif kind in ("dict_type", "model_type", "model_attributes_type"):
        message = f"a mapping is wanted, not {kind_of(detail['input'])}"
        if isinstance(detail["input"], list):
            hint = "Take away the '-' before its keys."
    elif kind == "list_type":
        message = f"a list is wanted, not {kind_of(detail['input'])}"
        if isinstance(detail["input"], Mapping | str):
            hint = "Begin each entry with '-'."
    elif kind == "too_short":
        message = "is empty"
    else:
        message = detail["msg"]
    problems.error(where, message, hint, line_of(lines, where))

"""Mistakes in the structure, said with their lines and what was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mergeloom.errors import Problems
from mergeloom.recipe.schema import TOP_LEVEL_KEYS, RecipeFile, level_of
from mergeloom.recipe.structure import Mistake, Place
from mergeloom.recipe.words import nearest_match
from mergeloom.recipe.yaml_reader import join
from mergeloom.types import line_of


def path_of(place: Iterable[str | int]) -> str:
    """``("models", 0, "model")`` → ``models[0].model``."""
    path = ""
    for key in place:
        path = join(path, key)
    return path


def validated(
    data: dict[str, Any],
    lines: Mapping[str, int],
    parameter_names: Callable[[], frozenset[str]],
    problems: Problems,
    lenient: bool,
) -> tuple[RecipeFile | None, set[str]]:
    """The structure of a document, or None with every mistake in ``problems``.

    When ``lenient``, keys that are not known are passed over with a warning.

    Returns:
        The structure, and the paths that misspelt keys were probably meant to be, so that they
        are not reported as missing too.
    """
    meant: set[str] = set()
    mistakes: list[Mistake] = []
    structure = RecipeFile.read(data, (), mistakes)
    report = problems.warn if lenient else problems.error
    for place in (mistake.place for mistake in mistakes if not mistake.message):
        message, suggestion = unknown_key(place, data, parameter_names())
        if suggestion and not lenient:
            meant.add(path_of((*place[:-1], suggestion)))
        where = path_of(place)
        ignored = "; it is ignored" if lenient else ""
        report(where, message + ignored, line=line_of(lines, where))
    for mistake in mistakes:
        where = path_of(mistake.place)
        if mistake.message and not (mistake.missing and where in meant):
            where += mistake.suffix
            problems.error(where, mistake.message, mistake.hint, line_of(lines, where))
    complete = all(lenient and not mistake.message for mistake in mistakes)
    return structure if complete else None, meant


def _dig(data: Any, place: Place) -> Any:
    for key in place:
        data = data[key]
    return data


def unknown_key(
    place: Place, data: dict[str, Any], parameter_names: frozenset[str]
) -> tuple[str, str]:
    """The message for a key that does not belong here, and the key it probably means."""
    key = str(place[-1])
    level = level_of(place[:-1])
    known = tuple(level.keys()) if level else ()
    siblings = _dig(data, place[:-1])
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

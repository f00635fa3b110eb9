"""Settings: the shapes a parameter may be written in, their normal form, and their resolution.

A parameter is a scalar, a gradient (a list of scalars spread over the layers of a slice), a
``{filter, value}`` mapping, or a list of those. The normal form is always a tuple of
``Conditional``.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from mergeloom.recipe.words import kind_of, nearest_word
from mergeloom.types import Conditional, Scalar, Setting

NO_VALUE = "has no value; write one or remove the line"


class SettingError(ValueError):
    """A setting that cannot be read; ``suffix`` is its place below it (``[1].value``)."""

    def __init__(self, message: str, suffix: str = "") -> None:
        super().__init__(message)
        self.suffix = suffix


def parse_setting(value: object) -> Setting | None:
    """The normal form of a written parameter, or None for an empty list, which counts as absent.

    Raises:
        SettingError: for null, a list that mixes values with mappings, nested lists or
            conditions, an unknown key, a filter that is not a text or not a valid pattern.
    """
    if isinstance(value, Mapping):
        return (_conditional(value, ""),)
    if not isinstance(value, list | tuple):
        return (Conditional(None, _scalar(value, "")),)
    if not value:
        return None
    mappings = sum(isinstance(item, Mapping) for item in value)
    if mappings == 0:
        return (Conditional(None, _gradient(value, "")),)
    if mappings < len(value):
        raise SettingError(
            "mixes plain values with {filter, value} entries; write a plain value as {value: ...}"
        )
    return tuple(_conditional(item, f"[{i}]") for i, item in enumerate(value))


def _conditional(found: Mapping[str, Any], place: str) -> Conditional:
    for key in found:
        if key not in ("filter", "value"):
            near = nearest_word(str(key), ("filter", "value"))
            wanted = near or "a condition has the keys filter and value"
            raise SettingError(f"unknown key, {wanted}", f"{place}.{key}")
    if "value" not in found:
        raise SettingError("needs the key 'value': {filter: ..., value: ...}", place)
    value = found["value"]
    here = f"{place}.value"
    pattern = _filter(found.get("filter"), f"{place}.filter")
    if isinstance(value, Mapping):
        raise SettingError("a value is a number or a list of numbers, not a condition", here)
    if not isinstance(value, list | tuple):
        return Conditional(pattern, _scalar(value, here))
    if not value:
        raise SettingError("an empty list has no value to give", here)
    return Conditional(pattern, _gradient(value, here))


def _filter(value: object, place: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise SettingError(f"a filter is a text, not {kind_of(value)}", place)
    if not value:
        raise SettingError("the filter is empty; write '*' or leave it out for all tensors", place)
    problem = pattern_problem(value)
    if problem:
        raise SettingError(problem, place)
    return value


def pattern_problem(pattern: str) -> str:
    """What is wrong with a ``re:`` pattern, or an empty text."""
    if not pattern.startswith("re:"):
        return ""
    try:
        _compiled(pattern.removeprefix("re:"))
    except (re.error, OverflowError, RecursionError) as error:
        return f"{pattern!r} is not a valid regular expression: {error}"
    return ""


def _gradient(items: list[Any] | tuple[Any, ...], place: str) -> tuple[Scalar, ...]:
    for i, item in enumerate(items):
        if isinstance(item, list | tuple | Mapping):
            wanted = "a gradient is a flat list of numbers"
            raise SettingError(f"{wanted}, and this is {kind_of(item)}", f"{place}[{i}]")
    return tuple(_scalar(item, f"{place}[{i}]") for i, item in enumerate(items))


def _scalar(value: object, place: str) -> Scalar:
    if value is None:
        raise SettingError(NO_VALUE, place)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return finite(value, place)
    raise SettingError(f"a number is wanted, not {kind_of(value)}", place)


def finite(value: int | float, place: str = "") -> int | float:
    """The number, if float arithmetic can hold it."""
    try:
        if math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise SettingError("the number is not finite", place)


def plain_number(text: str) -> int | float | None:
    """The number a text stands for (``"0.5"``, ``"1e-10"``), or None."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


# --- resolution -------------------------------------------------------------------------------


def resolve_setting(setting: Setting, tensor_name: str, t: float) -> Scalar | None:
    """The value of a setting for one tensor.

    The first entry whose filter matches wins. A gradient of n numbers is interpolated linearly
    at ``t * (n - 1)``; one of booleans or words gives the element at its floor.

    Args:
        setting: the normal form of a parameter.
        tensor_name: the name the filters look at.
        t: 0 to 1, the position in the slice: i / (L - 1) for layer i of L, 1 for a single layer,
            0 before the layers and 1 after them.

    Returns:
        The value, or None if no entry matches.
    """
    for entry in setting:
        if matches(entry.filter, tensor_name):
            if isinstance(entry.value, tuple):
                return _at(entry.value, t)
            return entry.value
    return None


def _at(values: tuple[Scalar, ...], t: float) -> Scalar:
    place = min(max(t, 0.0), 1.0) * (len(values) - 1)
    if abs(place - round(place)) < 1e-9:
        # (i / (L - 1)) * (n - 1) may fall an ulp short of the element it stands for.
        return values[round(place)]
    i = math.floor(place)
    low, high = values[i], values[i + 1]
    if isinstance(low, str) or isinstance(high, str) or all(isinstance(v, bool) for v in values):
        return low
    part = place - i
    return (1 - part) * low + part * high


def matches(filter: str | None, tensor_name: str) -> bool:  # noqa: A002  (the recipe's own word)
    """Whether a filter of a setting applies to a tensor.

    None and ``*`` match all; ``glob:…`` matches the whole name with shell wildcards, ``re:…``
    anywhere with a regular expression, and any other text is a plain substring, with case.
    """
    if filter is None or filter == "*":
        return True
    if filter.startswith("glob:"):
        return fnmatchcase(tensor_name, filter.removeprefix("glob:"))
    if filter.startswith("re:"):
        return _compiled(filter.removeprefix("re:")).search(tensor_name) is not None
    return filter in tensor_name


def selects(patterns: tuple[str, ...], tensor_name: str) -> bool:
    """Whether any entry of ``include`` or ``exclude`` names the tensor.

    An entry is a glob over the whole name (``glob:`` may stand before it) or ``re:…``.
    """
    for pattern in patterns:
        if pattern.startswith("re:"):
            if _compiled(pattern.removeprefix("re:")).search(tensor_name):
                return True
        elif fnmatchcase(tensor_name, pattern.removeprefix("glob:")):
            return True
    return False


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        # Python warns of sets it may read differently one day ("[[a]"); users cannot act on it.
        warnings.simplefilter("ignore")
        return re.compile(pattern)

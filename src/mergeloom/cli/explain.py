"""``mergeloom explain METHOD``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from mergeloom.errors import RecipeError, nearest
from mergeloom.methods import METHODS, Method, Parameter

SYMBOLS = (
    "B is the base, xᵢ are the models besides it, wᵢ their weights, Δᵢ = xᵢ − B, "
    "and n is the number of elements of a tensor."
)
"""What the signs of every formula mean."""


def explanation(name: str) -> str:
    """The page of one method. Raises RecipeError for an unknown name."""
    if name not in METHODS:
        near = nearest(name, METHODS)
        methods = f"methods are {', '.join(METHODS)}"
        found = f"unknown method {name!r}"
        raise RecipeError(f"{found}, {near} The {methods}" if near else f"{found}; the {methods}")
    return "\n".join(_lines(METHODS[name]))


def _lines(method: Method) -> Iterator[str]:
    yield f"{method.name} ({method.title})"
    yield ""
    yield method.summary
    yield f"When to use it: {method.use}"
    low, high = method.models
    count = f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or more"
    besides = " besides the base" if method.base != "unused" else ""
    yield f"Models{besides}: {count}. Base model: {method.base}."
    if method.formula_text:
        yield ""
        yield f"The formula: {method.formula_text.rstrip()}"
        yield ""
        yield from _wrapped(SYMBOLS)
    if method.parameters:
        yield ""
        yield "Parameters:"
        yield from (f"  {_parameter(p)}" for p in method.parameters)
    if method.differs:
        yield ""
        yield from _wrapped(f"Beside mergekit and the paper: {method.differs}")
    if method.reference:
        yield ""
        yield f"Source: {method.reference}"
    yield ""
    yield "A recipe:"
    yield ""
    yield from (f"    {line}" for line in method.example.rstrip().splitlines())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96)


def _parameter(parameter: Parameter) -> str:
    scope = "for each model" if parameter.per_model else "for the merge"
    default = "required" if parameter.required else f"default {_value(parameter.default)}"
    span = ""
    if parameter.choices:
        span = f", one of {', '.join(parameter.choices)}"
    elif parameter.low is not None or parameter.high is not None:
        span = f", {_value(parameter.low)} to {_value(parameter.high)}"
    return f"{parameter.name}: {parameter.kind}{span}, {scope}, {default}; {parameter.help}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

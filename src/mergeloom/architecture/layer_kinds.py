"""Whether a selection of layers can be described to the loader at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.architecture.layout import Layout
from mergeloom.architecture.stacks import Stack, family

Kind = frozenset[tuple[str, tuple[int, ...]]]
"""What a layer is made of: its (suffix, shape) pairs."""


@dataclass(frozen=True)
class Misfit:
    """The first output layer that the loader would expect to be of another kind.

    Args:
        place: the output layer.
        fitting: the source layers that would fit there.
        period: after how many layers the kinds repeat, 0 when they do not.
    """

    place: int
    fitting: tuple[int, ...]
    period: int = 0


def first_misfit(source: Sequence[Kind], selected: Sequence[Kind]) -> Misfit | None:
    """Whether a loader that knows only the number of layers expects these kinds.

    Layers of one kind fit anywhere. A first or last layer with more than the others (T5's table of
    distances) keeps its place. Otherwise the loader derives the kind from the position (DeepSeek's
    first dense layers, Jamba's period): find the smallest offset d and period p with
    kind(i) = kind(d + (i − d) mod p) for every i ≥ d, and require the same law of the selection.
    Only meant for models whose kinds no list in config.json describes.
    """
    expected, period = _expectation(source, len(selected))
    for place, kind in enumerate(selected):
        wanted = expected(place)
        if kind != wanted:
            fitting = tuple(i for i, one in enumerate(source) if one == wanted)
            return Misfit(place, fitting, period)
    return None


def _expectation(source: Sequence[Kind], count: int) -> tuple[Callable[[int], Kind], int]:
    """What the loader expects at each of ``count`` places, and the period of the kinds."""
    if len(set(source)) == 1:
        return lambda _: source[0], 0
    first, last = end_extras(source)
    if first or last:
        inner = source[0] - first if first else source[-1] - last

        def with_ends(place: int) -> Kind:
            more = first if place == 0 else frozenset()
            return inner | more | (last if place == count - 1 else frozenset())

        return with_ends, 0
    offset, period = _law(source)
    return (
        lambda place: source[place if place < offset else offset + (place - offset) % period],
        period if period > 1 and offset + 2 * period <= len(source) else 0,
    )


def end_extras(source: Sequence[Kind]) -> tuple[Kind, Kind]:
    """What only the first and what only the last layer has, beside all that the others have.

    Both are empty when the layers differ in any other way.
    """
    inner = set(source[1:-1]) or {min(source[0], source[-1], key=len)}
    if len(source) < 2 or len(inner) > 1:
        return frozenset(), frozenset()
    plain = inner.pop()
    if not (plain <= source[0] and plain <= source[-1]):
        return frozenset(), frozenset()
    return source[0] - plain, source[-1] - plain


def _law(source: Sequence[Kind]) -> tuple[int, int]:
    """The smallest (offset + period, offset) that describes the source; at worst its length."""
    count = len(source)
    for total in range(1, count + 1):
        for offset in range(total):
            period = total - offset
            if all(source[i] == source[offset + (i - offset) % period]
                   for i in range(offset, count)):  # fmt: skip
                return offset, period
    return 0, count


def packed_by_layer(layout: Layout, stack: Stack, scope: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensors outside the stack that hold a block of rows or columns for each of its layers.

    Gemma-3n's per-layer embeddings: (rows, layers · ``hidden_size_per_layer_input``).
    """
    widths = {
        stack.length * value
        for key, value in scope.items()
        if "hidden_size_per_layer" in key and type(value) is int and value > 0
    }
    return tuple(
        name
        for name, shape in layout.shapes.items()
        if layout.place(name).stack is None
        and family(name) == family(stack.prefix)
        and widths & set(shape)
    )


def lists_beside(layout: Layout, stack: Stack) -> tuple[str, ...]:
    """Numbered tensors beside a stack with one element for each of its layers.

    XLM's ``attentions``, ``layer_norm1``, ``ffns``: together they are the layers.
    """
    parent = stack.prefix.rpartition(".")[0]
    elements: dict[str, set[int]] = {}
    for name in layout.shapes:
        if name.startswith(f"{parent}." if parent else "") and layout.place(name).stack != stack:
            parts = name.split(".")
            number = next((i for i, p in enumerate(parts) if i and p.isascii() and p.isdigit()), 0)
            if number:
                elements.setdefault(".".join(parts[:number]), set()).add(int(parts[number]))
    counted = {s.prefix for s in layout.stacks if s.count_key not in (None, stack.count_key)}
    return tuple(
        prefix
        for prefix, numbers in elements.items()
        if numbers == set(range(stack.length))
        and prefix not in counted
        and family(prefix) == family(stack.prefix)
    )

"""Whether a selection of layers can be described to the loader at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.architecture.layout import Layout
from mergeloom.architecture.stacks import Stack, family

Kind = frozenset[tuple[str, tuple[int, ...]]]
"""What a layer is made of: its (suffix, shape) pairs."""


def first_misfit(source: Sequence[Kind], selected: Sequence[Kind]) -> int | None:
    """The first output layer whose kind the loader would not expect there, or None.

    Layers of one kind fit anywhere. Otherwise the loader derives the kind from the position
    (DeepSeek's first dense layers, Jamba's period): find the smallest offset d and period p with
    kind(i) = kind(d + (i − d) mod p) for every i ≥ d, and require the same law of the selection.
    Only meant for models whose kinds no list in config.json describes.
    """
    if len(set(source)) == 1:
        return next((j for j, kind in enumerate(selected) if kind != source[0]), None)
    offset, period = _law(source)
    for j, kind in enumerate(selected):
        expected = source[j] if j < offset else source[offset + (j - offset) % period]
        if kind != expected:
            return j
    return None


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

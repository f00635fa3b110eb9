"""Which tensors of a model have one row, column or number for each token."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergeloom.architecture.layout import HEAD, NOT_HEAD, Layout

_BIAS = re.compile(r"(^|[._])bias$")
_PER_LAYER = re.compile(r"embed_tokens_per_layer")


def vocabulary_axes(layout: Layout) -> Mapping[str, int]:
    """Tensor name → the axis along which it has one entry for each token.

    Input embeddings and heads, whichever way round the head is stored; a second table on the same
    vocabulary (``embed_tokens_per_layer``); and what a head adds to its results: a bias of one
    number for each token, also with a leading axis of 1 (BART's ``final_logits_bias``).
    """
    sizes = {layout.shapes[name][0] for name in (*layout.embeddings, *layout.heads)}
    axes = dict.fromkeys((*layout.embeddings, *layout.heads), 0)
    for name, shape in layout.shapes.items():
        if name not in axes and layout.place(name).role != "layer":
            axis = _axis(name, shape, sizes)
            if axis is not None:
                axes[name] = axis
    return axes


def _axis(name: str, shape: tuple[int, ...], sizes: set[int]) -> int | None:
    """The vocabulary axis of a tensor that is not among the embeddings and heads."""
    if len(shape) == 2 and _PER_LAYER.search(name):
        return 0
    if len(shape) == 1 and shape[0] in sizes and _BIAS.search(name):
        return 0
    if len(shape) != 2 or shape[1] not in sizes or shape[0] in sizes:
        return None
    is_head = bool(HEAD.search(name)) and not NOT_HEAD.search(name)
    return 1 if is_head or (shape[0] == 1 and _BIAS.search(name)) else None

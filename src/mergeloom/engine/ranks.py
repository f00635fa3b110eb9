"""Places of magnitudes among those of their row, and random choices weighed by them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from mergeloom.engine.native.library import choose_by_rank
from mergeloom.engine.randomness import Bools, Words

Array = np.ndarray[Any, Any]


def rows_along(values: Array, shape: tuple[int, ...]) -> Array:
    """Flat elements of whole indices of the first axis as rows along the second one.

    Of a tensor with one axis, all of it is the row. Shape (rows, row).
    """
    row = shape[1] if len(shape) > 1 else len(values)
    return values.reshape(-1, row, math.prod(shape[2:])).swapaxes(1, 2).reshape(-1, row)


def flat_again(rows: Array, shape: tuple[int, ...]) -> Array:
    """The opposite of :func:`rows_along`."""
    rest = math.prod(shape[2:])
    return rows.reshape(-1, rest, rows.shape[1]).swapaxes(1, 2).reshape(-1)


def mean_rank(sizes: Array, shape: tuple[int, ...]) -> Array:
    """Each element's rank in its row, divided by the largest rank; equals share their mean rank.

    The only element of a row has 0.5.
    """
    rows = rows_along(sizes, shape)
    last = rows.shape[1] - 1
    shares = np.full_like(rows, 0.5)
    for row, share in zip(rows, shares, strict=True) if last else ():
        ordered = np.sort(row)
        first = np.searchsorted(ordered, row)
        behind = np.searchsorted(ordered, row, side="right")
        share[:] = (first + behind - 1).astype(sizes.dtype) / sizes.dtype.type(2 * last)
    return flat_again(shares, shape)


def chosen_by_rank(
    bits: Array, shape: tuple[int, ...], words: Words, lowest: float, highest: float
) -> Bools:
    """True with a probability that rises in equal steps with the rank of a size in its row.

    The smallest of a row has probability ``lowest``, the largest ``highest``, equals the mean of
    theirs; all exact to 2⁻¹⁶. A word says from which rank on its element is chosen, so a sorted
    row is enough: the element is compared with the size that has this rank. The word's last bit
    says whether the element counts as the first or the last of its equals.

    ``bits`` are the sizes as integers of the same order, int32 or int64.
    """
    rows = np.ascontiguousarray(rows_along(bits, shape))  # (rows, row)
    drawn = np.ascontiguousarray(rows_along(words, shape))
    ordered = np.sort(rows, axis=1)
    places = _places(rows.shape[1], lowest, highest)
    chosen = choose_by_rank(rows, ordered, drawn, places)
    if chosen is None:
        chosen = rows >= np.take_along_axis(_limits(ordered), places[drawn], axis=1)
    flat: Bools = flat_again(chosen, shape)
    return flat


def _limits(ordered: Array) -> Array:
    """What a size must reach to be chosen from a rank on, shape (rows, 2 (row + 1)).

    From rank r on: as the last of its equals the size of that rank; as the first of them more
    than the size before. Rank 0 is always reached and rank ``row`` never.
    """
    count, row = ordered.shape
    limits = np.empty((count, 2, row + 1), dtype=ordered.dtype)
    limits[:, 0, :-1] = ordered
    limits[:, 0, -1] = np.iinfo(ordered.dtype).max
    np.add(ordered, 1, out=limits[:, 1, 1:])
    limits[:, 1, 0] = -1
    return limits.reshape(count, -1)


@functools.lru_cache(maxsize=16)
def _places(row: int, lowest: float, highest: float) -> Array:
    """For every word where a row's limits say whether to choose its element, shape (65536,)."""
    words = np.arange(1 << 16)
    steps = np.linspace(lowest, highest, row) if row > 1 else np.array([(lowest + highest) / 2])
    rank = np.searchsorted(steps, ((words >> 1) + 0.5) / (1 << 15), side="right")
    places: Array = (rank + (words & 1) * (row + 1)).astype(np.int32)
    return places

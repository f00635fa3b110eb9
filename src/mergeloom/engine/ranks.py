"""Ranks of magnitudes within their rows, and random choices weighted by rank."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

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
    if rows.shape[1] == 1:
        return np.full_like(sizes, 0.5)
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    begins = np.ones(rows.shape, dtype=np.bool_)  # where others than the size before begin
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=begins[:, 1:])
    first = np.flatnonzero(begins)
    equals = np.diff(first, append=rows.size)
    twice = (first % rows.shape[1] * 2 + equals - 1).astype(sizes.dtype)
    shares = np.empty_like(ordered)
    found = np.repeat(twice / sizes.dtype.type(2 * (rows.shape[1] - 1)), equals)
    np.put_along_axis(shares, order, found.reshape(rows.shape), axis=1)
    return flat_again(shares, shape)


def chosen_by_rank(
    bits: Array, shape: tuple[int, ...], words: Words, lowest: float, highest: float
) -> Bools:
    """True with a probability that rises with the rank of a size in its row.

    The smallest of a row has probability ``lowest``, the largest ``highest``, the others equal
    steps between, equals the mean of theirs; all exact to 2⁻¹⁶. The last bit of a word says
    whether the element counts as the first or the last of its equals, the others are the number
    that must be below the probability.

    ``bits`` are the sizes as integers of the same order, int32 or int64.
    """
    rows = np.ascontiguousarray(rows_along(bits, shape))  # (rows, row)
    drawn = np.ascontiguousarray(rows_along(words, shape))
    chances = Chances.between(lowest, highest, rows.shape[1])
    found = choose_by_rank(rows, drawn, *chances)
    if found is None:
        chosen = choose_by_sorting(rows, drawn, chances)
    else:
        chosen, left = found
        if left.any():
            chosen[left] = choose_by_sorting(rows[left], drawn[left], chances)
    flat: Bools = flat_again(chosen, shape)
    return flat


class Chances(NamedTuple):
    """With rank k of a row a number of 15 bits below int(first + k · step) chooses an element."""

    first: float
    step: float

    @classmethod
    def between(cls, lowest: float, highest: float, row: int) -> Chances:
        """Those of the smallest and the largest of a row; a single element has the mean."""
        if lowest > highest:
            raise ValueError(f"the chances fall from {lowest:g} to {highest:g}")
        if row < 2:
            lowest = highest = (lowest + highest) / 2
        return cls(lowest * (1 << 15) + 0.5, (highest - lowest) * (1 << 15) / max(1, row - 1))


def choose_by_sorting(rows: Array, words: Array, chances: Chances) -> Array:
    """Bools of shape (rows, row).

    A number says from which rank on its element is chosen, so a sorted row is enough: the
    element is compared with the size that has this rank, as the first of its equals with the one
    before it.
    """
    row = rows.shape[1]
    ranks = _ranks(row, chances)[words >> 1]
    first = (words & 1).astype(rows.dtype)
    places = np.clip(ranks - first, 0, row - 1)
    limits = np.take_along_axis(np.sort(rows, axis=1), places, axis=1)
    chosen: Array = (ranks == 0) | ((rows - first >= limits) & (ranks < row))
    return chosen


@functools.lru_cache(maxsize=16)
def _ranks(row: int, chances: Chances) -> Array:
    """For every number of 15 bits from which rank on it chooses, 0 to ``row``."""
    below = (chances.first + np.arange(row) * chances.step).astype(np.int32)
    return np.searchsorted(below, np.arange(1 << 15), side="right").astype(np.int32)

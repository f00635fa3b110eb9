"""What a sample of a tensor's scores says about the place of its thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Bits = np.ndarray[Any, Any]


class Sample:
    """The sampled scores of one row, as the integers of their bits, in ascending order.

    Args:
        pieces: arrays of shape (pieces, elements); the elements of a piece lie side by side.
        total: how many scores the tensor has.
    """

    def __init__(self, pieces: Sequence[Bits], total: int) -> None:
        self.ordered = np.concatenate([some.reshape(-1) for some in pieces])
        self.ordered.sort()
        self.total = total

    def nonzero(self) -> int:
        """How many of the tensor's scores are not zero: a guess, 0 only if the sample has none."""
        found = len(self.ordered) - self._behind(0)
        return round(found * self.total / len(self.ordered))

    def deviation(self, count: int, pieces: Sequence[Bits]) -> float:
        """How far the sample's share of the ``count`` largest is off, as a standard deviation.

        Neighbours resemble each other, so this is judged by how much the pieces differ too, not
        only by the number of their elements.
        """
        size = len(self.ordered)
        if size >= self.total:
            return 0.0
        guess = self.ordered[min(max(size - round(self._rank(count)), 0), size - 1)]
        differ = _spread([some >= guess for some in pieces])
        if self._behind(guess) - self._before(guess) > size / 16:
            # Where most are zero, say, every piece has only zeros and more.
            differ = max(differ, _spread([some > guess for some in pieces]))
        share = min(max(count / self.total, 0.0), 1.0)
        return math.hypot(math.sqrt(share * (1 - share) / size), differ)

    def around(self, count: int, margin: float) -> tuple[int, int]:
        """The scores whose ranks are off by ``margin``, a share, from that of the threshold."""
        size, rank = len(self.ordered), self._rank(count)
        off = margin * size + 1 if size < self.total else 0.0
        last, first = math.ceil(rank + off), math.floor(rank - off)
        low = int(self.ordered[size - last]) if last <= size else 0
        high = int(self.ordered[size - max(first, 1)]) if first >= 1 else self.largest
        return low, high

    def within(self, low: int, high: int, without: int) -> float:
        """How many of the tensor's scores lie in [low, high] and are not ``without``."""
        found = self._behind(high) - self._before(low)
        if low <= without <= high:
            found -= self._behind(without) - self._before(without)
        return found * self.total / len(self.ordered)

    def commonest(self, low: int, high: int) -> int:
        """The most frequent number in [low, high]; ``low`` if there is none."""
        inside = self.ordered[self._before(low) : self._behind(high)]
        if not len(inside):
            return low
        ends = np.append(np.flatnonzero(inside[1:] != inside[:-1]), len(inside) - 1)
        return int(inside[ends[np.argmax(np.diff(ends, prepend=-1))]])

    @property
    def largest(self) -> int:
        """More than any score."""
        return int(np.iinfo(self.ordered.dtype).max)

    def _rank(self, count: int) -> float:
        """The threshold's rank from the top, in the sample."""
        return count * len(self.ordered) / self.total

    def _before(self, bits: int) -> int:
        return int(np.searchsorted(self.ordered, self.ordered.dtype.type(bits)))

    def _behind(self, bits: int) -> int:
        return int(np.searchsorted(self.ordered, self.ordered.dtype.type(bits), side="right"))


def _spread(chosen: Sequence[Bits]) -> float:
    """The standard deviation of the share that is chosen, as the pieces' own shares tell it."""
    shares = [np.sum(some, axis=1, dtype=np.uint32) / some.shape[1] for some in chosen]
    return float(np.std(np.concatenate(shares))) / math.sqrt(sum(map(len, chosen)))

"""Exact order statistics: a sample brackets the k-th largest, then one pass counts and keeps.

The pass counts the scores above the bracket and keeps the few inside it; their order gives the
exact value. A sample that misled is noticed by the counts, and the pass is repeated with another
bracket, so what is sampled decides about time and never about the result. Non-negative floats are
compared by their bits, which as integers have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mergeloom.methods import Largest

Bits = np.ndarray[Any, Any]

DEVIATIONS = 6.0
"""Half the width of a bracket in standard deviations of the sample's rank."""

ALL = -1
"""As a budget: every element of the range that equals the threshold is chosen."""

_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def bits_of(scores: torch.Tensor) -> Bits:
    """Non-negative floats as integers of the same order."""
    bits: Bits = scores.contiguous().view(_INTEGER[scores.dtype]).cpu().numpy()
    return bits


def value_of(bits: int, dtype: torch.dtype) -> float:
    """The float with these bits."""
    return float(torch.tensor(bits, dtype=_INTEGER[dtype]).view(dtype))


def below(value: float, dtype: torch.dtype) -> float:
    """The next smaller number of a dtype."""
    start = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(start, torch.tensor(-math.inf, dtype=dtype)))


@dataclass
class Choice:
    """The ``count`` largest of ``total`` scores.

    ``low`` and ``high`` are the bracket, both inside it, and ``common`` is the most frequent
    number in it: models in 16-bit formats differ by few distinct numbers, so it may be a tenth of
    all, and is counted without being looked at one by one. Once it is known to hold the smallest
    chosen score, ``threshold`` is that score and ``budgets`` says how many elements equal to it
    each range chooses, first come first served.
    """

    count: int
    total: int
    low: int = 0
    high: int = 0
    common: int = 0
    reach: float = DEVIATIONS
    found: bool = False
    threshold: float = math.inf
    budgets: dict[int, int] = field(default_factory=dict)

    @property
    def trivial(self) -> bool:
        """Whether there is no smallest chosen score to look for."""
        return not 0 < self.count <= self.total

    def keep(self, values: torch.Tensor, budget: int) -> tuple[torch.Tensor, int]:
        """The values whose size is chosen, 0 for the others; and the budget left for equals."""
        if self.count >= self.total:
            return values, budget
        # Masks of bools are several times slower in torch on a CPU than its hardshrink, which
        # zeroes what is not larger than a limit, and nothing for a negative one.
        if budget == ALL:
            return torch.hardshrink(values, below(self.threshold, values.dtype)), budget
        kept = torch.hardshrink(values, self.threshold)
        if not budget:
            return kept, budget
        equal = (values.abs() == self.threshold).nonzero().squeeze(1)[:budget]
        kept[equal] = values[equal]
        return kept, budget - len(equal)


@dataclass(frozen=True)
class Count:
    """What one range tells about one choice: scores above the bracket, and those inside it as
    distinct values with their numbers."""

    above: int
    values: Bits
    numbers: Bits


@dataclass(frozen=True)
class Counts:
    """What one range tells: of each row the non-zero scores, of each choice a count."""

    nonzero: list[int]
    choices: dict[tuple[int, int], Count]


class Tally:
    """Counts the scores of one range for one choice, block by block."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._above = 0
        self._equal = 0
        self._inside: list[Bits] = []
        self._masks = [np.empty(0, dtype=np.bool_)] * 2

    def add(self, bits: Bits) -> None:
        """Take one block's scores."""
        choice = self._choice
        if len(self._masks[0]) < bits.size:
            self._masks = [np.empty(bits.size, dtype=np.bool_) for _ in range(2)]
        equal, within = (mask[: bits.size] for mask in self._masks)
        np.equal(bits, choice.common, out=equal)
        self._equal += int(np.count_nonzero(equal))
        if choice.low == choice.high:
            self._above += int(np.count_nonzero(np.greater(bits, choice.high, out=within)))
            return
        np.less_equal(bits, choice.high, out=within)
        self._above += bits.size - int(np.count_nonzero(within))
        np.greater(within, equal, out=within)  # and not equal
        np.logical_and(within, np.greater_equal(bits, choice.low, out=equal), out=within)
        self._inside.append(np.compress(within, bits))

    def count(self) -> Count:
        """What was found."""
        common, equal = np.array([self._choice.common]), np.array([self._equal])
        if not self._inside:
            return Count(self._above, common, equal)
        values, numbers = np.unique(np.concatenate(self._inside), return_counts=True)
        at = np.searchsorted(values, common)
        return Count(self._above, np.insert(values, at, common), np.insert(numbers, at, equal))


class Search:
    """The state of one :class:`Largest` on its way through a tensor of ``total`` elements."""

    def __init__(self, measure: Largest, total: int) -> None:
        self.choices: list[list[Choice]] = []
        self._measure = measure
        self._total = total
        self._dtype = torch.float32
        self._samples: dict[int, list[Bits]] = {}
        self._ranges: dict[int, Counts] = {}

    def sample(self, span: int, pieces: Sequence[torch.Tensor]) -> None:
        """Take the scores of some pieces of a range, each of shape (scores, elements)."""
        self._dtype = pieces[0].dtype
        self._samples[span] = [bits_of(piece) for piece in pieces]

    def bracket(self) -> None:
        """From the samples of all ranges choose where to look for each threshold."""
        pieces = [piece for span in sorted(self._samples) for piece in self._samples[span]]
        total = self._total
        sampled = sum(piece.shape[1] for piece in pieces)
        nonzero = [
            round(sum(np.count_nonzero(p[s]) for p in pieces) * total / sampled)
            for s in range(len(pieces[0]))
        ]
        self.choices = [
            [Choice(count, total) for count in row] for row in self._measure.counts(nonzero, total)
        ]
        for s, row in enumerate(self.choices):
            for choice in row:
                if not choice.trivial:
                    choice.low, choice.high = self._around(choice, s, pieces)
                    choice.common = _commonest(choice, s, pieces)

    def count(self, blocks: Iterable[Iterable[torch.Tensor]]) -> Counts:
        """What one range's rows of scores tell about the choices that are still open."""
        nonzero = [0] * len(self.choices)
        tallies = {
            (s, c): Tally(choice)
            for s, row in enumerate(self.choices)
            for c, choice in enumerate(row)
            if not (choice.trivial or choice.found)
        }
        for scores in blocks:
            for s, bits in enumerate(bits_of(row) for row in scores):
                if self._measure.of_nonzero:
                    nonzero[s] += bits.size - int(np.count_nonzero(bits == 0))
                for c in range(len(self.choices[s])):
                    if (s, c) in tallies:
                        tallies[s, c].add(bits)
        return Counts(nonzero, {key: tally.count() for key, tally in tallies.items()})

    def absorb(self, span: int, counts: Counts) -> None:
        """Take one range's counts."""
        self._ranges[span] = counts

    def settle(self) -> bool:
        """Find the thresholds and share out their equals over the ranges in order.

        True when some bracket missed its threshold and the pass must be repeated.
        """
        if self._measure.of_nonzero:
            rows = [sum(n) for n in zip(*(r.nonzero for r in self._ranges.values()), strict=True)]
            for row, exact in zip(
                self.choices, self._measure.counts(rows, self._total), strict=True
            ):
                for choice, count in zip(row, exact, strict=True):
                    choice.count = count
        for s, row in enumerate(self.choices):
            for c, choice in enumerate(row):
                counted = {n: r.choices[s, c] for n, r in sorted(self._ranges.items())
                           if (s, c) in r.choices}  # fmt: skip
                if not choice.trivial and not choice.found:
                    self._settle(choice, s, counted)
        self._ranges.clear()
        missed = any(not (c.trivial or c.found) for row in self.choices for c in row)
        if not missed:
            self._samples.clear()
        return missed

    def _settle(self, choice: Choice, s: int, counted: dict[int, Count]) -> None:
        above = sum(count.above for count in counted.values())
        inside = sum(int(count.numbers.sum()) for count in counted.values())
        if not above < choice.count <= above + inside:
            self._look_further(choice, s, beyond=above >= choice.count)
            return
        values = np.concatenate([count.values for count in counted.values()])
        numbers = np.concatenate([count.numbers for count in counted.values()])
        order = np.argsort(values)[::-1]  # largest first
        reached = above + np.cumsum(numbers[order])
        bits = int(values[order[np.searchsorted(reached, choice.count)]])
        choice.found, choice.threshold = True, value_of(bits, self._dtype)
        left = choice.count - above - int(numbers[values > bits].sum())
        for span, count in counted.items():
            at = int(np.searchsorted(count.values, bits))
            here = at < len(count.values) and count.values[at] == bits
            equal = int(count.numbers[at]) if here else 0
            choice.budgets[span] = ALL if equal <= left else left
            left -= min(equal, left)

    def _look_further(self, choice: Choice, s: int, *, beyond: bool) -> None:
        """Move the bracket to the side where the threshold is, and make it wider."""
        choice.reach *= 4
        pieces = [piece for span in sorted(self._samples) for piece in self._samples[span]]
        low, high = self._around(choice, s, pieces)
        if beyond:
            choice.low = choice.high + 1
            choice.high = high if high > choice.low else _largest(pieces)
        else:
            choice.high = choice.low - 1
            choice.low = low if low < choice.high else 0
        choice.common = _commonest(choice, s, pieces)

    def _around(self, choice: Choice, s: int, pieces: Sequence[Bits]) -> tuple[int, int]:
        """A bracket around the sample's guess of a threshold.

        Neighbours resemble each other, so how far the guess may be off is judged by how much the
        pieces differ, not by the number of their elements.
        """
        ordered = np.sort(np.concatenate([piece[s] for piece in pieces]))
        size = len(ordered)
        rank = choice.count * size / choice.total  # from the top, in the sample
        margin = 0.0
        if size < choice.total:
            guess = ordered[min(max(size - round(rank), 0), size - 1)]
            shares = [np.count_nonzero(piece[s] >= guess) / piece.shape[1] for piece in pieces]
            deviation = math.hypot(0.5 / math.sqrt(size), np.std(shares) / math.sqrt(len(pieces)))
            margin = choice.reach * deviation * size + 1
        last, first = math.ceil(rank + margin), math.floor(rank - margin)
        low = int(ordered[size - last]) if last <= size else 0
        high = int(ordered[size - max(first, 1)]) if first >= 1 else _largest(pieces)
        return low, high


def _commonest(choice: Choice, s: int, pieces: Sequence[Bits]) -> int:
    """The most frequent number in the bracket, as far as the sample knows."""
    sampled = np.concatenate([piece[s] for piece in pieces])
    inside = sampled[(sampled >= choice.low) & (sampled <= choice.high)]
    values, numbers = np.unique(inside, return_counts=True)
    return int(values[np.argmax(numbers)]) if len(values) else choice.low


def _largest(pieces: Sequence[Bits]) -> int:
    return int(np.iinfo(pieces[0].dtype).max)

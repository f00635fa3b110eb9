"""Exact order statistics in two passes: a histogram on the floats' bits, then the bin's values.

Non-negative floats order like their bits as integers, so the leading 15 bits make a histogram and
only the values of one bin, under a percent of all, need to be told apart in the second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

BINS = 1 << 15
_BITS = {torch.float32: (torch.int32, 16), torch.float64: (torch.int64, 48)}
"""float dtype → the integer of its width, and how many bits the histogram leaves out."""

Counts = np.ndarray[Any, Any]


def bits_of(scores: torch.Tensor) -> torch.Tensor:
    """Non-negative floats as integers of the same order."""
    return scores.view(_BITS[scores.dtype][0])


def above(values: torch.Tensor, limit: float) -> torch.Tensor:
    """1 where a non-negative value is larger than ``limit``, else 0, in the values' dtype.

    Comparisons that make bools, and masking by bools, are several times slower in torch on a CPU
    than arithmetic. Zeros count as not larger than a negative limit.
    """
    return torch.nn.functional.threshold(values, limit, 0.0).sign_()


def below(value: float, dtype: torch.dtype) -> float:
    """The next smaller number of a dtype."""
    start = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(start, torch.tensor(-math.inf, dtype=dtype)))


def value_of(bits: int, dtype: torch.dtype) -> float:
    """The float with these bits."""
    return float(torch.tensor(bits, dtype=_BITS[dtype][0]).view(dtype))


ALL = -1
"""As a budget: every element of the range that equals the threshold is chosen."""


@dataclass
class Choice:
    """The ``count`` largest of a row of scores.

    ``bin`` is where the smallest of them lies and ``rank`` its place among that bin's values from
    the top. After the second pass ``threshold`` is that value, ``bits`` the same as an integer,
    and ``budgets`` how many elements equal to it each range chooses, first come first served.
    """

    count: int
    total: int
    bin: int = BINS
    rank: int = 0
    bits: int = -1
    threshold: float = math.inf
    budgets: dict[int, int] = field(default_factory=dict)

    def mask(self, scores: torch.Tensor, budget: int) -> tuple[torch.Tensor, int]:
        """1 where a score is chosen and 0 elsewhere, and the budget that is left for equals."""
        if self.count >= self.total:
            return torch.ones_like(scores), budget
        if self.count <= 0:
            return torch.zeros_like(scores), budget
        if budget == ALL:
            return above(scores, below(self.threshold, scores.dtype)), budget
        chosen = above(scores, self.threshold)
        if budget:
            equal = (scores == self.threshold).nonzero().squeeze(1)[:budget]
            chosen[equal] = 1.0
            budget -= len(equal)
        return chosen, budget


class Histogram:
    """How many scores of each row fall into each bin, and how many are zero."""

    def __init__(self) -> None:
        self._counts: Counts | None = None
        self._zeros: Counts | None = None

    def count(self, scores: torch.Tensor) -> None:
        """Add one block's scores, shape (scores, elements)."""
        shift = _BITS[scores.dtype][1]
        bits = bits_of(scores.contiguous()).cpu()
        rows = [torch.bincount(row >> shift, minlength=BINS).numpy() for row in bits]
        zeros = [row.numel() - np.count_nonzero(row.numpy()) for row in bits]
        self._add(np.stack(rows), np.asarray(zeros))

    def add(self, other: Histogram) -> None:
        """Add another histogram. Integers, so the order does not matter."""
        if other._counts is not None and other._zeros is not None:
            self._add(other._counts, other._zeros)

    def _add(self, counts: Counts, zeros: Counts) -> None:
        if self._counts is None or self._zeros is None:
            self._counts, self._zeros = counts.copy(), zeros.copy()
        else:
            self._counts += counts
            self._zeros += zeros

    def nonzero(self) -> list[int]:
        """Non-zero scores of each row."""
        if self._counts is None or self._zeros is None:
            return []
        return [int(n) for n in self._counts.sum(1) - self._zeros]

    def locate(self, counts: Sequence[Sequence[int]], total: int) -> list[list[Choice]]:
        """For each row the bins that the wanted ranks lie in."""
        if self._counts is None:
            return [[Choice(0, total) for _ in row] for row in counts]
        found = []
        for bins, wanted in zip(self._counts, counts, strict=True):
            above = np.cumsum(bins[::-1])  # scores in the top i + 1 bins
            found.append([_locate(above, bins, count, total) for count in wanted])
        return found


def _locate(above: Counts, bins: Counts, count: int, total: int) -> Choice:
    if not 0 < count <= total:
        return Choice(count, total)
    place = int(np.searchsorted(above, count))  # the first that holds `count` scores
    number = BINS - 1 - place
    return Choice(count, total, number, count - int(above[place] - bins[number]))


class Refinement:
    """The distinct values, with counts by range, of the bins that hold a threshold."""

    def __init__(self) -> None:
        self._dtype = torch.float32
        self._blocks: dict[tuple[int, int], list[Counts]] = {}
        self._ranges: dict[tuple[int, int], dict[int, tuple[Counts, Counts]]] = {}

    def collect(self, scores: torch.Tensor, choices: Sequence[Sequence[Choice]]) -> None:
        """Keep one block's values that lie in a wanted bin."""
        self._dtype = scores.dtype
        shift = _BITS[scores.dtype][1]
        bits = bits_of(scores.contiguous()).cpu().numpy()
        for s, (row, wanted) in enumerate(zip(bits, choices, strict=True)):
            for number in {c.bin for c in wanted if c.bin < BINS}:
                # One unsigned comparison tells whether a value lies in [first, first + 2^shift).
                offset = (row - row.dtype.type(number << shift)).view(f"u{row.itemsize}")
                self._blocks.setdefault((s, number), []).append(row[offset < (1 << shift)])

    def absorb(self, span: int, part: Refinement) -> None:
        """Take one range's values as (distinct values, counts)."""
        self._dtype = part._dtype
        for key, pieces in part._blocks.items():
            values, counts = np.unique(np.concatenate(pieces), return_counts=True)
            self._ranges.setdefault(key, {})[span] = (values, counts)

    def settle(self, choices: Sequence[Sequence[Choice]]) -> None:
        """Find every threshold and share out its equals over the ranges in order."""
        for s, row in enumerate(choices):
            for choice in row:
                if choice.bin < BINS:
                    self._settle(choice, self._ranges[s, choice.bin])
        self._ranges.clear()

    def _settle(self, choice: Choice, ranges: dict[int, tuple[Counts, Counts]]) -> None:
        values = np.concatenate([v for v, _ in ranges.values()])
        counts = np.concatenate([c for _, c in ranges.values()])
        distinct, inverse = np.unique(values, return_inverse=True)
        totals = np.bincount(inverse, weights=counts).astype(np.int64)[::-1]  # largest first
        above = np.cumsum(totals)
        place = int(np.searchsorted(above, choice.rank))
        choice.bits = int(distinct[::-1][place])
        choice.threshold = value_of(choice.bits, self._dtype)
        left = choice.rank - int(above[place] - totals[place])
        for span in sorted(ranges):
            own, amounts = ranges[span]
            at = int(np.searchsorted(own, choice.bits))
            equal = int(amounts[at]) if at < len(own) and own[at] == choice.bits else 0
            choice.budgets[span] = ALL if equal <= left else left
            left -= min(equal, left)

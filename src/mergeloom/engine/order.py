"""Exact order statistics: a sample brackets the k-th largest, then one pass counts and keeps.

The pass counts the scores above the bracket and keeps the few inside it; their order gives the
exact value. A sample that misled is noticed by the counts, and the pass is repeated with another
bracket, so what is sampled decides about time and never about the result. Non-negative floats are
compared by their bits, which as integers have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergeloom.methods import Largest

Bits = np.ndarray[Any, Any]

DEVIATIONS = 6.0
"""Half the width of a bracket in standard deviations of the sample's rank."""

ALL = -1
"""As a budget: every element of the range that equals the threshold is chosen."""

_FLOAT: dict[int, type[np.floating[Any]]] = {4: np.float32, 8: np.float64}


def value_of(bits: int, size: int) -> float:
    """The float of ``size`` bytes with these bits."""
    return float(np.array(bits, dtype=f"u{size}").view(_FLOAT[size]))


def below(value: float, size: int) -> float:
    """The next smaller float of ``size`` bytes."""
    kind = _FLOAT[size]
    return float(np.nextafter(kind(value), kind(-math.inf)))


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


@dataclass(frozen=True)
class Count:
    """What one range tells about one choice: scores above the bracket, equal to its common
    number, and all others inside it, in no order."""

    above: int
    equal: int
    inside: Bits


class Tally:
    """Counts the scores of one range for one choice, block by block."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.nonzero = 0
        self._above = 0
        self._equal = 0
        self._inside: list[Bits] = []

    def add(self, bits: Bits) -> None:
        """Count the scores of one block."""
        choice = self.choice
        equal = bits == choice.common
        within = (bits >= choice.low) & (bits <= choice.high)
        self.take(
            int(np.count_nonzero(bits > choice.high)),
            int(np.count_nonzero(equal)),
            int(np.count_nonzero(bits)),
            bits[within & ~equal],
        )

    def take(self, above: int, equal: int, nonzero: int, inside: Bits) -> None:
        """Take what one block has: scores above the bracket, equal to its common number, not
        zero, and all others inside it."""
        self._above += above
        self._equal += equal
        self.nonzero += nonzero
        if len(inside):
            self._inside.append(inside)

    def count(self) -> Count:
        """What was found; the tally is empty then, as large tensors have large ones."""
        inside, self._inside = self._inside, []
        found = np.concatenate(inside) if inside else np.empty(0, np.uint32)
        return Count(self._above, self._equal, found)


Tallies = Mapping[tuple[int, int], Tally]
"""By score and choice."""


class Search:
    """The state of one :class:`Largest` on its way through a tensor of ``total`` elements."""

    def __init__(self, measure: Largest, total: int) -> None:
        self.choices: list[list[Choice]] = []
        self._measure = measure
        self._total = total
        self._bytes = 4
        self._exact = False
        self._samples: dict[int, Sequence[Sequence[Bits]]] = {}
        self._ranges: dict[int, Tallies] = {}

    def sample(self, span: int, pieces: Sequence[Sequence[Bits]]) -> None:
        """Take the scores of some pieces of a range, one array of bits for each score."""
        self._bytes = pieces[0][0].itemsize
        self._samples[span] = pieces

    def bracket(self) -> None:
        """From the samples of all ranges choose where to look for each threshold."""
        pieces = [piece for span in sorted(self._samples) for piece in self._samples[span]]
        total = self._total
        sampled = sum(len(piece[0]) for piece in pieces)
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

    def tallies(self) -> Tallies:
        """Fresh tallies for the choices that are still open."""
        return {
            (s, c): Tally(choice)
            for s, row in enumerate(self.choices)
            for c, choice in enumerate(row)
            if not choice.found and (self._measure.of_nonzero or not choice.trivial)
        }

    def absorb(self, span: int, tallies: Tallies) -> None:
        """Take one range's tallies."""
        self._ranges[span] = tallies

    def settle(self) -> bool:
        """Find the thresholds and share out their equals over the ranges in order.

        True when some bracket missed its threshold and the pass must be repeated.
        """
        ranges = [(span, self._ranges[span]) for span in sorted(self._ranges)]
        if self._measure.of_nonzero and not self._exact:
            self._exact = True
            nonzero = [
                sum(tallies[s, 0].nonzero for _, tallies in ranges)
                for s in range(len(self.choices))
            ]
            for row, exact in zip(
                self.choices, self._measure.counts(nonzero, self._total), strict=True
            ):
                for choice, count in zip(row, exact, strict=True):
                    choice.count = count
        for s, row in enumerate(self.choices):
            for c, choice in enumerate(row):
                if not choice.trivial and not choice.found:
                    counted = {span: tallies[s, c].count() for span, tallies in ranges}
                    self._settle(choice, s, counted)
        self._ranges.clear()
        missed = any(not (c.trivial or c.found) for row in self.choices for c in row)
        if not missed:
            self._samples.clear()
        return missed

    def _settle(self, choice: Choice, s: int, counted: dict[int, Count]) -> None:
        above = sum(count.above for count in counted.values())
        inside = sum(count.equal + len(count.inside) for count in counted.values())
        if not above < choice.count <= above + inside:
            self._look_further(choice, s, beyond=above >= choice.count)
            return
        bits, left = _place(choice, [*counted.values()], choice.count - above)
        choice.found, choice.threshold = True, value_of(bits, self._bytes)
        for span, count in counted.items():
            equal = int(np.count_nonzero(count.inside == bits))
            equal += count.equal if bits == choice.common else 0
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

    def _around(self, choice: Choice, s: int, pieces: Sequence[Sequence[Bits]]) -> tuple[int, int]:
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
            shares = [np.count_nonzero(piece[s] >= guess) / len(piece[s]) for piece in pieces]
            deviation = math.hypot(0.5 / math.sqrt(size), np.std(shares) / math.sqrt(len(pieces)))
            margin = choice.reach * deviation * size + 1
        last, first = math.ceil(rank + margin), math.floor(rank - margin)
        low = int(ordered[size - last]) if last <= size else 0
        high = int(ordered[size - max(first, 1)]) if first >= 1 else _largest(pieces)
        return low, high


def _place(choice: Choice, counts: Sequence[Count], wanted: int) -> tuple[int, int]:
    """The ``wanted``-th largest number in the bracket, and how many equal to it are among those."""
    listed = np.concatenate([count.inside for count in counts])
    equal = sum(count.equal for count in counts)
    larger = int(np.count_nonzero(listed > choice.common))
    if larger < wanted <= larger + equal:
        return choice.common, wanted - larger
    if wanted > larger:  # one of those below the common number
        wanted -= equal
    listed.partition(len(listed) - wanted)
    bits = int(listed[len(listed) - wanted])
    return bits, wanted - int(np.count_nonzero(listed > bits))


def _commonest(choice: Choice, s: int, pieces: Sequence[Sequence[Bits]]) -> int:
    """The most frequent number in the bracket, as far as the sample knows."""
    sampled = np.concatenate([piece[s] for piece in pieces])
    inside = sampled[(sampled >= choice.low) & (sampled <= choice.high)]
    values, numbers = np.unique(inside, return_counts=True)
    return int(values[np.argmax(numbers)]) if len(values) else choice.low


def _largest(pieces: Sequence[Sequence[Bits]]) -> int:
    return int(np.iinfo(pieces[0][0].dtype).max)

"""Exact order statistics: a sample brackets the k-th largest, then one pass counts and keeps.

The pass counts the scores above the bracket and keeps the few inside it; their order gives the
exact value. A sample that misled is noticed by the counts, and the pass is repeated with another
bracket, so what is sampled decides about time and never about the result. Non-negative floats are
compared by their bits, which as integers have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergeloom.engine.sample import Bits, Sample
from mergeloom.methods import Largest

DEVIATIONS = 4.0
"""Half the width of a bracket in standard deviations of the sample's rank. One threshold in some
hundred to some thousand lies outside and costs one more pass; what lies inside costs every one."""

BIN_BITS = 8
BINS = 1 << BIN_BITS

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
    all, and is counted without being looked at one by one. ``listed`` says whether all others
    are kept; else they are counted in bins, of which one is the next bracket. ``deviation`` is
    that of the sample's share. Once the smallest chosen score is known, ``threshold`` is that
    score and ``budgets`` says how many elements equal to it each range chooses, first come first
    served.
    """

    count: int
    total: int
    low: int = 0
    high: int = 0
    common: int = 0
    listed: bool = True
    deviation: float = 0.0
    reach: float = DEVIATIONS
    found: bool = False
    threshold: float = math.inf
    budgets: dict[int, int] = field(default_factory=dict)

    @property
    def trivial(self) -> bool:
        """Whether there is no smallest chosen score to look for."""
        return not 0 < self.count <= self.total

    @property
    def shift(self) -> int:
        """A score's bin is its distance from ``low`` without this many bits."""
        return max(0, (self.high - self.low).bit_length() - BIN_BITS)

    def look_at(self, low: int, high: int, sample: Sample, room: int) -> None:
        """Look for the threshold in [low, high], which should hold no more scores than ``room``."""
        self.low, self.high = low, high
        self.common = sample.commonest(low, high)
        self.listed = sample.within(low, high, self.common) <= room


class Tally:
    """Counts the scores of one range for one choice, block by block.

    ``above`` counts the scores above the bracket and ``equal`` those equal to its common number;
    all others inside it are in ``kept`` or counted in ``bins``.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.nonzero = 0
        self.above = 0
        self.equal = 0
        self.kept: list[Bits] = []
        self.bins = np.zeros(BINS, dtype=np.int64)

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
        self.above += above
        self.equal += equal
        self.nonzero += nonzero
        if self.choice.listed:
            self.kept.append(inside)
        else:
            places = (inside - self.choice.low) >> self.choice.shift
            self.bins += np.bincount(places.astype(np.intp), minlength=BINS)


Tallies = Mapping[tuple[int, int], Tally]
"""By score and choice."""


class Counted:
    """What all ranges of a pass tell about one choice, of which at most ``room`` are kept."""

    def __init__(self, room: int) -> None:
        self.nonzero = 0
        self.above = 0
        self.equal: dict[int, int] = {}
        self.kept: dict[int, list[Bits]] = {}
        self.bins = np.zeros(BINS, dtype=np.int64)
        self.inside = 0
        self._room = room

    @property
    def too_many(self) -> bool:
        """Whether none are kept, as there is no room for all."""
        return self.inside > self._room

    def add(self, span: int, tally: Tally) -> None:
        """Take one range's tally."""
        self.nonzero += tally.nonzero
        self.above += tally.above
        self.equal[span] = tally.equal
        self.kept[span] = tally.kept
        self.bins += tally.bins
        self.inside += sum(map(len, tally.kept)) + int(tally.bins.sum())
        if self.too_many:
            self.kept.clear()

    def listed(self, kind: np.dtype[Any]) -> Bits:
        """All that were kept."""
        return np.concatenate(
            [np.empty(0, kind), *(some for kept in self.kept.values() for some in kept)]
        )


class Search:
    """The state of one :class:`Largest` on its way through a tensor of ``total`` elements.

    Of the scores inside brackets at most ``room`` bytes are kept: a bracket with too many of them
    is only counted, and the pass repeated with one of its bins as the bracket.
    """

    def __init__(self, measure: Largest, total: int, room: int) -> None:
        self.choices: list[list[Choice]] = []
        self._measure = measure
        self._total = total
        self._memory = room
        self._room = 0
        self._kind = np.dtype(np.uint32)
        self._exact = False
        self._pieces: dict[int, Bits] = {}
        self._samples: list[Sample] = []
        self._counted: dict[tuple[int, int], Counted] = {}

    def sample(self, span: int, scores: Bits) -> None:
        """Take the bits of the scores of some pieces of a range, shape (scores, pieces, size)."""
        self._kind = scores.dtype
        self._pieces[span] = scores

    def bracket(self) -> None:
        """From the samples of all ranges choose where to look for each threshold."""
        ranges = [self._pieces[span] for span in sorted(self._pieces)]
        rows = range(len(ranges[0]))
        total = self._total
        self._samples = [Sample([some[s] for some in ranges], total) for s in rows]
        nonzero = [sample.nonzero() for sample in self._samples]
        self.choices = [
            [Choice(count, total) for count in row] for row in self._measure.counts(nonzero, total)
        ]
        self._room = self._memory // self._kind.itemsize // max(1, sum(map(len, self.choices)))
        for s, row in enumerate(self.choices):
            sample, pieces = self._samples[s], [some[s] for some in ranges]
            for choice in row:
                choice.deviation = sample.deviation(choice.count, pieces)
                if not choice.trivial:
                    choice.look_at(*_around(choice, sample), sample, self._room)
        self._pieces.clear()

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
        for key, tally in tallies.items():
            if key not in self._counted:
                self._counted[key] = Counted(self._room)
            self._counted[key].add(span, tally)

    def settle(self) -> bool:
        """Find the thresholds and share out their equals over the ranges in order.

        True when some bracket missed its threshold and the pass must be repeated.
        """
        if self._measure.of_nonzero and not self._exact:
            self._exact = True
            nonzero = [self._counted[s, 0].nonzero for s in range(len(self.choices))]
            for row, exact in zip(
                self.choices, self._measure.counts(nonzero, self._total), strict=True
            ):
                for choice, count in zip(row, exact, strict=True):
                    choice.count = count
        for s, row in enumerate(self.choices):
            for c, choice in enumerate(row):
                if not choice.trivial and not choice.found:
                    self._settle(choice, self._samples[s], self._counted[s, c])
        self._counted.clear()
        missed = any(not (c.trivial or c.found) for row in self.choices for c in row)
        if not missed:
            self._samples.clear()
        return missed

    def _settle(self, choice: Choice, sample: Sample, counted: Counted) -> None:
        """Find one threshold, or choose where to look next."""
        equal = sum(counted.equal.values())
        wanted = choice.count - counted.above
        if not 0 < wanted <= counted.inside + equal:
            low, high = _further(choice, sample, beyond=wanted <= 0)
            choice.look_at(low, high, sample, self._room)
            return
        if not choice.listed:
            low, high, inside = _bin_with(choice, counted.bins, equal, wanted)
            choice.look_at(low, high, sample, self._room)
            choice.listed = inside <= self._room
            return
        if counted.too_many:
            choice.listed = False
            return
        bits, left = _place(counted.listed(self._kind), choice.common, equal, wanted)
        choice.found, choice.threshold = True, value_of(bits, self._kind.itemsize)
        for span in sorted(counted.equal):
            here = sum(int(np.count_nonzero(some == bits)) for some in counted.kept[span])
            here += counted.equal[span] * (bits == choice.common)
            choice.budgets[span] = ALL if here <= left else left
            left -= min(here, left)


def _around(choice: Choice, sample: Sample) -> tuple[int, int]:
    """The bracket as the sample guesses it."""
    return sample.around(choice.count, choice.reach * choice.deviation)


def _further(choice: Choice, sample: Sample, *, beyond: bool) -> tuple[int, int]:
    """A bracket on the side where the threshold is, and a wider one."""
    choice.reach *= 4
    low, high = _around(choice, sample)
    if beyond:
        return choice.high + 1, high if high > choice.high + 1 else sample.largest
    return low if low < choice.low - 1 else 0, choice.low - 1


def _bin_with(choice: Choice, bins: Bits, equal: int, wanted: int) -> tuple[int, int, int]:
    """The ends of the bin with the ``wanted``-th largest, and how many scores it has.

    Those equal to the common number, which are not in the bins, are not among them.
    """
    all_bins = bins.copy()
    all_bins[(choice.common - choice.low) >> choice.shift] += equal
    number = BINS - 1 - int(np.searchsorted(np.cumsum(all_bins[::-1]), wanted))
    low = choice.low + (number << choice.shift)
    return low, min(low + (1 << choice.shift) - 1, choice.high), int(bins[number])


def _place(listed: Bits, common: int, equal: int, wanted: int) -> tuple[int, int]:
    """The ``wanted``-th largest of some scores and of ``common``, which is there ``equal`` times;
    and how many equal to it are among those."""
    larger = int(np.count_nonzero(listed > common))
    if larger < wanted <= larger + equal:
        return common, wanted - larger
    if wanted > larger:  # one of those below the common number
        wanted -= equal
    bits = _guess(listed, wanted)
    larger = int(np.count_nonzero(listed > bits))
    if not larger < wanted <= larger + int(np.count_nonzero(listed == bits)):
        listed.partition(len(listed) - wanted)
        bits = int(listed[len(listed) - wanted])
        larger = int(np.count_nonzero(listed > bits))
    return bits, wanted - larger


def _guess(scores: Bits, wanted: int) -> int:
    """About the ``wanted``-th largest of some scores.

    Right if a good part of them are equal to it, which is what takes numpy longest to partition.
    """
    few = np.sort(scores[:: 1 + len(scores) // 1024])
    return int(few[len(few) - 1 - (wanted - 1) * len(few) // len(scores)])

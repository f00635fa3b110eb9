"""What is known about a whole tensor while a formula's passes go over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergeloom.engine.order import Choice, Search
from mergeloom.engine.randomness import Bools, Chance, Stream
from mergeloom.engine.ranks import chosen_by_rank, mean_rank
from mergeloom.engine.sizes import REMEMBERED, remembered_bytes
from mergeloom.methods import Elementwise, Largest
from mergeloom.planning import Job
from mergeloom.types import numel

Numbers = np.ndarray[Any, Any]

Chosen = tuple[int, int, int, float, float]
"""Model, first element, how many, the lowest and the highest probability."""


@dataclass
class TotalsFound:
    """The parts of one :class:`Totals` by range, then their sum."""

    parts: dict[int, Numbers] = field(default_factory=dict)
    total: Numbers | None = None

    def settle(self) -> None:
        """Add the parts in order, so that rounding does not depend on the workers."""
        ordered = [self.parts[span] for span in sorted(self.parts)]
        self.total = np.sum(ordered, axis=0) if ordered else None
        self.parts.clear()


class Facts:
    """The totals and thresholds found for one job, and its random choices."""

    def __init__(self, job: Job, formula: Elementwise, seed: int) -> None:
        self.size = numel(job.shape)
        room = remembered_bytes(self.size, len(job.inputs))
        self.found: list[TotalsFound | Search] = [
            Search(measure, self.size, room) if isinstance(measure, Largest) else TotalsFound()
            for measure in formula.measures
        ]
        self._shape = job.shape
        # The input's tensor too: one model may come twice in a slice, with different layers.
        self._streams = [
            Stream(seed, job.name, f"{entry.model}:{entry.tensor}") for entry in job.inputs[1:]
        ]
        self._divergences: dict[tuple[int, int, int], Numbers] = {}
        self._remembers = bool(self.found) and self.size * len(job.inputs) <= REMEMBERED * 8
        self._chosen: dict[Chosen, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        """What was chosen at random: bits that a later pass need not draw."""

    def known(self, measure: int) -> Numbers:
        """The totals of a measure, float64."""
        found = self.found[measure]
        if not isinstance(found, TotalsFound) or found.total is None:
            raise RuntimeError(f"measure {measure} has no totals yet")
        return found.total

    def choice(self, measure: int, score: int, choice: int) -> Choice:
        """What a search has found."""
        found = self.found[measure]
        if not isinstance(found, Search):
            raise RuntimeError(f"measure {measure} looks for no largest")
        return found.choices[score][choice]

    def stream(self, model: int) -> Stream:
        """The random numbers of a model's elements."""
        return self._streams[model]

    def chance(self, model: int, probability: float) -> Chance:
        """What tiles choose a model's elements with."""
        return self._streams[model].chance(probability)

    def by_chance(self, model: int, start: int, count: int, probability: float) -> Bools:
        """True with ``probability`` for elements from ``start`` on."""
        return self._streams[model].chosen(start, count, probability)

    def by_rank(
        self,
        model: int,
        start: int,
        count: int,
        bits: Callable[[], Numbers],
        lowest: float,
        highest: float,
    ) -> Bools:
        """True with a probability that rises with the rank of the element's bits in its row."""

        def choose() -> Bools:
            words = self._streams[model].words(start, count)
            return chosen_by_rank(bits(), self._shape, words, lowest, highest)

        return self.remembered((model, start, count, lowest, highest), choose)

    def remembered(self, key: Chosen, choose: Callable[[], Bools]) -> Bools:
        """Choose, or remember what an earlier pass has chosen."""
        if key in self._chosen:
            return np.unpackbits(self._chosen.pop(key), count=key[2]).view(np.bool_)
        chosen = choose()
        if self._remembers:
            self._chosen[key] = np.packbits(chosen)
        return chosen

    def row_divergence(
        self, model: int, start: int, count: int, measure: Callable[[], Numbers]
    ) -> Numbers:
        """A block's numbers for its rows: measured, or those of an earlier pass if they are few."""
        key = (model, start, count)
        found = self._divergences.get(key)
        if found is None:
            found = measure()
            if found.nbytes * self.size <= REMEMBERED * count:
                self._divergences[key] = found
        return found

    def mean_rank(self, sizes: Numbers) -> Numbers:
        """Each element's share of the largest rank of its row."""
        return mean_rank(sizes, self._shape)

"""Runs methods that work element by element once facts about the whole tensor are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mergeloom.engine.facts import Facts, Numbers, TotalsFound
from mergeloom.engine.kernel import Kernel, Output, Place
from mergeloom.engine.order import Search, Tallies
from mergeloom.engine.scratch import Scratch
from mergeloom.engine.sizes import block_row, sample_of, sample_step
from mergeloom.methods import Elementwise, Largest, Note
from mergeloom.planning import Job


class Evaluation(Protocol):
    """Evaluates a job's formula over elements [start, stop), in tiles or in torch.

    ``carried`` is what ``begin`` returned for a range of blocks: how many elements equal to each
    threshold it may still keep.
    """

    blocks: int
    """How many blocks are best done at once."""

    def begin(self, span: int) -> Any:
        """What the blocks of one range pass on."""
        ...

    def totals(
        self,
        measure: int,
        start: int,
        stop: int,
        scratch: Scratch,
        carried: Any,
        before: Numbers | None,
    ) -> Numbers:
        """A measure's totals of a block and of those of its range ``before``, float64."""
        ...

    def scores(
        self, measure: int, pieces: Sequence[tuple[int, int]], scratch: Scratch, carried: Any
    ) -> Numbers:
        """The bits of a measure's scores in pieces of the same size, in an array the caller owns.

        Shape (scores, pieces, elements).
        """
        ...

    def count(
        self,
        measure: int,
        tallies: Tallies,
        start: int,
        stop: int,
        scratch: Scratch,
        carried: Any,
    ) -> None:
        """Count the scores of a block."""
        ...

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Any, place: Place | None
    ) -> Output:
        """The block of the output, rounded; perhaps at its place already."""
        ...


@dataclass(frozen=True)
class Phase:
    """One measuring pass: which measure, and whether it only looks at a sample."""

    measure: int
    sample: bool = False


class ElementwiseKernel(Kernel):
    """One job whose formula is :class:`Elementwise`."""

    def __init__(
        self, job: Job, formula: Elementwise, facts: Facts, evaluation: Evaluation
    ) -> None:
        self.block_row = block_row(job)
        self.blocks = evaluation.blocks
        self._facts = facts
        self._evaluation = evaluation
        self._plan: list[Phase] = []
        for number, measure in enumerate(formula.measures):
            if isinstance(measure, Largest):
                self._plan.append(Phase(number, sample=True))
            self._plan.append(Phase(number))
        self.phases = len(self._plan)

    def reads_all(self, phase: int) -> bool:
        """Whether a pass reads every element, not a sample."""
        return phase == self.phases or not self._plan[phase].sample

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Any:
        """One range's share of a total or of the counts around a threshold, or its sample."""
        wanted, evaluation = self._plan[phase], self._evaluation
        number, found = wanted.measure, self._facts.found[wanted.measure]
        carried = evaluation.begin(span)
        if wanted.sample:
            pieces = sample_of(start, stop, self._facts.size, self.block_row)
            every = sample_step(pieces, start, stop, self._facts.size)
            scores = evaluation.scores(number, pieces, scratch, carried)
            return np.ascontiguousarray(scores[:, :, ::every])
        edges = [(a, min(a + step, stop)) for a in range(start, stop, step)]
        if isinstance(found, Search):
            tallies = found.tallies()
            for a, b in edges:
                evaluation.count(number, tallies, a, b, scratch, carried)
            return tallies
        totals = None
        for a, b in edges:
            totals = evaluation.totals(number, a, b, scratch, carried, totals)
        return totals

    def absorb(self, phase: int, span: int, part: Any) -> None:
        """Take one range's share."""
        wanted = self._plan[phase]
        found = self._facts.found[wanted.measure]
        if isinstance(found, TotalsFound):
            found.parts[span] = part
        elif wanted.sample:
            found.sample(span, part)
        else:
            found.absorb(span, part)

    def settle(self, phase: int, note: Note) -> int:
        """End a pass; the number of the next one."""
        del note
        wanted = self._plan[phase]
        found = self._facts.found[wanted.measure]
        if isinstance(found, TotalsFound):
            found.settle()
        elif wanted.sample:
            found.bracket()
        elif found.settle():
            return phase
        return phase + 1

    def begin(self, span: int) -> Any:
        """How many equals of every threshold this range may keep."""
        return self._evaluation.begin(span)

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Any, place: Place | None
    ) -> Output:
        """Output elements [start, stop), rounded."""
        return self._evaluation.output(start, stop, scratch, carried, place)

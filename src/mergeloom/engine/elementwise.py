"""Runs methods that work element by element once facts about the whole tensor are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from mergeloom.engine.inputs import Inputs
from mergeloom.engine.kernel import Kernel, Output
from mergeloom.engine.order import Choice, Search
from mergeloom.engine.randomness import Bools, Stream
from mergeloom.engine.ranks import chosen_by_rank, mean_rank
from mergeloom.engine.rounding import rounded
from mergeloom.engine.scratch import Scratch
from mergeloom.engine.sizes import BLOCK, REMEMBERED, block_row, sample_of
from mergeloom.methods import Block, Elementwise, Largest, Note, Sums, Totals, Values
from mergeloom.planning import Job
from mergeloom.types import numel

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class TotalsFound:
    """The parts of one :class:`Totals` by range, then their sum."""

    parts: dict[int, Numbers] = field(default_factory=dict)
    total: Numbers | None = None

    def settle(self) -> None:
        """Add the parts in order, so that rounding does not depend on the workers."""
        ordered = [self.parts[span] for span in sorted(self.parts)]
        self.total = np.stack(ordered).sum(0) if ordered else None
        self.parts.clear()


@dataclass(frozen=True)
class Phase:
    """One measuring pass: which measure, and whether it only looks at a sample."""

    measure: int
    sample: bool = False


Carried = dict[tuple[int, int, int], int]
"""How many elements equal to each threshold a range may still keep."""


class ElementwiseKernel(Kernel):
    """One job whose formula is :class:`Elementwise`."""

    def __init__(self, job: Job, formula: Elementwise, device: str, seed: int) -> None:
        self.job = job
        self.formula = formula
        self.inputs = Inputs(job, device)
        self.block_row = block_row(job)
        self.size = numel(job.shape)
        self.found: list[TotalsFound | Search] = []
        self.plan: list[Phase] = []
        for number, measure in enumerate(formula.measures):
            if isinstance(measure, Largest):
                self.found.append(Search(measure, self.size))
                self.plan.append(Phase(number, sample=True))
            else:
                self.found.append(TotalsFound())
            self.plan.append(Phase(number))
        self.phases = len(self.plan)
        self.chosen: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.uint8]]] = {}
        """By model and block what was chosen at random: bits that a later pass need not draw."""
        self.made: dict[tuple[int, int], torch.Tensor] = {}
        """By first element and length of a block, what a method makes once of it."""
        self.remembers = self.phases > 0 and self.size * len(job.inputs) <= REMEMBERED * 8
        # The input's tensor too: one model may come twice in a slice, with different layers.
        self.streams = [
            Stream(seed, job.name, f"{entry.model}:{entry.tensor}") for entry in job.inputs[1:]
        ]

    def reads_all(self, phase: int) -> bool:
        """Whether a pass reads every element, not a sample."""
        return phase == self.phases or not self.plan[phase].sample

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Any:
        """One range's share of a total or of the counts around a threshold, or its sample."""
        wanted = self.plan[phase]
        measure, found = self.formula.measures[wanted.measure], self.found[wanted.measure]
        carried = self.begin(span)
        edges = [(a, min(a + step, stop)) for a in range(start, stop, step)]
        if wanted.sample:
            edges = sample_of(start, stop, self.size, self.block_row)
        blocks = (self._block(a, b, scratch, carried) for a, b in edges)
        if isinstance(measure, Totals):
            return np.stack([as_numbers(measure.of(block)) for block in blocks]).sum(0)
        scores = ([as_tensor(row) for row in measure.scores(block)] for block in blocks)
        if wanted.sample or not isinstance(found, Search):
            return [torch.stack(rows) for rows in scores]
        return found.count(scores)

    def absorb(self, phase: int, span: int, part: Any) -> None:
        """Take one range's share."""
        wanted = self.plan[phase]
        found = self.found[wanted.measure]
        if isinstance(found, TotalsFound):
            found.parts[span] = part
        elif wanted.sample:
            found.sample(span, part)
        else:
            found.absorb(span, part)

    def settle(self, phase: int, note: Note) -> int:
        """End a pass; the number of the next one."""
        del note
        wanted = self.plan[phase]
        found = self.found[wanted.measure]
        if isinstance(found, TotalsFound):
            found.settle()
        elif wanted.sample:
            found.bracket()
        elif found.settle():
            return phase
        return phase + 1

    def begin(self, span: int) -> Carried:
        """How many equals of every threshold this range may keep."""
        return {
            (m, s, c): choice.budgets.get(span, 0)
            for m, found in enumerate(self.found)
            if isinstance(found, Search)
            for s, row in enumerate(found.choices)
            for c, choice in enumerate(row)
        }

    def output(self, start: int, stop: int, scratch: Scratch, carried: Carried) -> Output:
        """Elements [start, stop) of the formula's result."""
        made = self.formula.apply(self._block(start, stop, scratch, carried))
        return rounded(self.job, start, as_tensor(made), scratch)

    def _block(self, start: int, stop: int, scratch: Scratch, carried: Carried) -> Block:
        base = self.inputs.base(start, stop, scratch)
        deltas = self.inputs.stacked(start, stop, scratch, base)
        return ElementBlock(self, scratch, start, base, list(deltas), carried)


def as_tensor(values: Values) -> torch.Tensor:
    """What a formula made of tensors: a tensor."""
    return cast(torch.Tensor, values)


def as_numbers(sums: Sums) -> Numbers:
    """A nested list of sums in float64, brought here together."""

    def stacked(sums: Sums) -> torch.Tensor:
        if isinstance(sums, Sequence):
            return torch.stack([stacked(part) for part in sums])
        return as_tensor(sums)

    numbers: Numbers = stacked(sums).cpu().double().numpy()
    return numbers


class ElementBlock:
    """See :class:`mergeloom.methods.Block`."""

    def __init__(
        self,
        kernel: ElementwiseKernel,
        scratch: Scratch,
        start: int,
        base: torch.Tensor,
        deltas: list[torch.Tensor],
        carried: Carried,
    ) -> None:
        self.base = base
        self.deltas = deltas
        self.shape = kernel.job.shape
        self._kernel = kernel
        self._scratch = scratch
        self._start = start
        self._carried = carried

    def once(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What was made of this block, kept if all blocks of the tensor together keep little."""
        made, key = self._kernel.made, (self._start, len(self.base))
        if key in made:
            return made[key]
        value = make()
        if value.nbytes * self._kernel.size <= REMEMBERED * len(self.base):
            made[key] = value
        return value

    def known(self, measure: int) -> Numbers:
        """The totals of a measure."""
        found = self._kernel.found[measure]
        if not isinstance(found, TotalsFound) or found.total is None:
            raise RuntimeError(f"measure {measure} has no totals yet")
        return found.total

    def threshold(self, measure: int, score: int, choice: int) -> float:
        """The smallest chosen score."""
        return self._choice(measure, score, choice).threshold

    def keep_largest(self, measure: int, score: int, choice: int, values: Values) -> torch.Tensor:
        """The values whose size is among the chosen largest, 0 for the others."""
        key = (measure, score, choice)
        given = as_tensor(values)
        kept, self._carried[key] = self._choice(*key).keep(given, self._carried[key])
        return kept

    def keep_by_chance(self, model: int, probability: float, values: Values) -> torch.Tensor:
        """What is chosen with ``probability``, 0 for the others."""
        stream, start = self._kernel.streams[model], self._start
        return self._keep(
            model, values, lambda count: stream.chosen(start, count, BLOCK, probability)
        )

    def keep_by_rank(
        self, model: int, lowest: float, highest: float, values: Values
    ) -> torch.Tensor:
        """What is chosen with a probability that rises with the rank, 0 for the others."""
        stream, start = self._kernel.streams[model], self._start

        def chosen(count: int) -> Bools:
            words = stream.words(start, count, BLOCK)
            return chosen_by_rank(self.deltas[model].abs(), self.shape, words, lowest, highest)

        return self._keep(model, values, chosen)

    def mean_rank(self, model: int) -> torch.Tensor:
        """Each element's share of the largest rank of its row."""
        return mean_rank(self.deltas[model].abs(), self.shape)

    def _keep(self, model: int, values: Values, choose: Callable[[int], Bools]) -> torch.Tensor:
        """Choose, or remember what an earlier pass has chosen, and zero the others."""
        kernel, key, given = self._kernel, (model, self._start), as_tensor(values)
        if key in kernel.chosen:
            chosen = np.unpackbits(kernel.chosen.pop(key), count=len(given)).view(np.bool_)
        else:
            chosen = choose(len(given))
            if kernel.remembers:
                kernel.chosen[key] = np.packbits(chosen)
        factors = self._scratch.tensor("factors", len(given), given.dtype)
        np.copyto(factors.numpy(), chosen)  # many times faster than torch from bools
        return given * factors.to(given.device)

    def _choice(self, measure: int, score: int, choice: int) -> Choice:
        found = self._kernel.found[measure]
        if not isinstance(found, Search):
            raise RuntimeError(f"measure {measure} looks for no largest")
        return found.choices[score][choice]

"""Evaluates elementwise formulas in tiles: a formula is recorded once a pass, then run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from mergeloom.engine.facts import Facts
from mergeloom.engine.kernel import Output, Place
from mergeloom.engine.native.blocks import Inputs, rounded
from mergeloom.engine.native.choices import chosen_sizes
from mergeloom.engine.native.divergence import row_divergence
from mergeloom.engine.native.library import COUNT, CUT
from mergeloom.engine.native.programs import (
    Numbers,
    Piece,
    Program,
    Source,
    address,
    compiled,
)
from mergeloom.engine.native.values import Total, Values, chosen, kept, loaded, spread
from mergeloom.engine.order import ALL, Choice, Tallies, below
from mergeloom.engine.randomness import Bools
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.methods import Elementwise, Largest, Totals
from mergeloom.planning import Job


@dataclass(frozen=True)
class Range:
    """Pieces of a job that something besides its inputs is made for."""

    pieces: Sequence[Piece]
    inputs: Inputs
    scratch: Scratch

    @property
    def size(self) -> int:
        """How many elements."""
        return sum(stop - start for start, stop in self.pieces)

    def sources(self, numbers: Collection[int]) -> list[Source]:
        """The inputs ``numbers`` there; what is made next finds a single piece in memory."""
        keep = len(self.pieces) == 1
        return self.inputs.sources(numbers, self.pieces, self.scratch, keep=keep)


Make = Callable[[Range], Numbers]
"""Makes what a formula wants besides the inputs, piece behind piece."""

Measure = Totals | Largest

CutKey = tuple[int, int, int]
"""Measure, score and choice."""


class RecordedBlock:
    """See :class:`mergeloom.methods.Block`; its values are symbolic."""

    def __init__(self, job: Job, facts: Facts) -> None:
        self.base = loaded(0)
        self.deltas = [loaded(i) - self.base for i in range(1, len(job.inputs))]
        self.shape = job.shape
        self.cuts: list[CutKey] = []
        self.extras: list[tuple[str, Make]] = []
        self._first_extra = len(job.inputs)
        self._known: dict[object, Values] = {}
        self._facts = facts

    def known(self, measure: int) -> Numbers:
        """The totals of a measure."""
        return self._facts.known(measure)

    def threshold(self, measure: int, score: int, choice: int) -> float:
        """The smallest chosen score."""
        return self._facts.choice(measure, score, choice).threshold

    def keep_largest(self, measure: int, score: int, choice: int, values: Values) -> Values:
        """Zeros for the values whose size is not among the chosen largest."""
        found = self._facts.choice(measure, score, choice)
        if found.count >= found.total:
            return values
        if found.count <= 0:
            return values * 0.0
        self.cuts.append((measure, score, choice))
        return kept(values, len(self.cuts) - 1)

    def keep_by_chance(self, model: int, probability: float, values: Values) -> Values:
        """Zeros for what is not chosen with ``probability``."""
        if probability >= 1:
            return values
        return chosen(values, self._facts.chance(model, probability))

    def keep_by_rank(self, model: int, lowest: float, highest: float, values: Values) -> Values:
        """Zeros for what is not chosen with a probability that rises with the rank."""
        sizes, limits = compiled(stored=[self.deltas[model].abs()]), (lowest, highest)
        stream = self._facts.stream(model)

        def by_rank(of: Range) -> Numbers:
            def choose() -> Bools:
                sources = of.sources(sizes.inputs)
                return chosen_sizes(
                    sizes, of.pieces, sources, of.scratch, stream, self.shape, limits
                )

            if len(of.pieces) > 1:  # a sample
                return choose()
            start, stop = of.pieces[0]
            return self._facts.remembered((model, start, stop - start, *limits), choose)

        return values * self._extra(("rank", model, lowest, highest), "BOOL", by_rank)

    def mean_rank(self, model: int) -> Values:
        """Each change's share of the largest rank of its row."""
        program = compiled(stored=[self.deltas[model].abs()])

        def shares(of: Range) -> Numbers:
            sizes = of.scratch.array("sizes", of.size, np.float32)
            sources = of.sources(program.inputs)
            program.run(of.pieces, sources, of.scratch, outputs=[(sizes, "F32")])
            return self._facts.mean_rank(sizes)

        return self._extra(("share", model), "F32", shares)

    def row_divergence(self, model: int, floor: float) -> Values:
        """How much the softmaxes of the rows differ, the same number for a whole row."""
        row = max(1, self.shape[-1]) if self.shape else 1

        def divergences(of: Range) -> Numbers:
            def measured() -> Numbers:
                if of.size % row:
                    raise ValueError("whole_rows is wanted for the divergence of rows")
                read = of.inputs.read(of.pieces, of.scratch)
                return row_divergence(read[model + 1], read[0], of.size // row, row, floor)

            if len(of.pieces) > 1:  # a sample, which may be as large as the block it begins with
                return measured()
            return self._facts.row_divergence(model, of.pieces[0][0], of.size, measured)

        found = self._extra(("divergence", model, floor), "F32", divergences)
        return spread(found.at, row)

    def _extra(self, key: object, kind: str, make: Make) -> Values:
        if key not in self._known:
            self._known[key] = loaded(self._first_extra + len(self.extras))
            self.extras.append((kind, make))
        return self._known[key]


class Recorded:
    """What a pass runs: the program, its cuts, and what it wants besides the inputs."""

    def __init__(self, program: Program, block: RecordedBlock, shape: tuple[int, ...] = ()) -> None:
        self.program = program
        self.cuts = block.cuts
        self.extras = block.extras
        self.shape = shape


@dataclass
class Carried:
    """What blocks of one range leave to the next."""

    span: int
    cuts: Numbers | None = None


class TiledEvaluation:
    """Evaluates one job's formula; see :class:`mergeloom.engine.elementwise.Evaluation`."""

    def __init__(self, job: Job, formula: Elementwise, facts: Facts, spare: Spare) -> None:
        self._job = job
        self._inputs = Inputs(job, spare)
        self._formula = formula
        self._facts = facts
        self._recorded: dict[object, Recorded] = {}
        # What is made besides the inputs, where rows are whole, takes memory for a block.
        self.blocks = 1 if formula.whole_rows else self._inputs.blocks

    def begin(self, span: int) -> Carried:
        """Cuts count down the equals that a range keeps, so every range has its own."""
        return Carried(span)

    def totals(
        self,
        measure: int,
        start: int,
        stop: int,
        scratch: Scratch,
        carried: Carried,
        before: Numbers | None,
    ) -> Numbers:
        """The totals of elements [start, stop) and all ``before``, float64."""
        recorded = self._recording(("totals", measure), lambda: self._record_totals(measure))
        flat = None if before is None else before.reshape(-1)
        piece = start, stop
        totals, _ = self._run(recorded, [piece], scratch, carried, again=True, totals=flat)
        return totals.reshape(recorded.shape)

    def scores(
        self,
        measure: int,
        pieces: Sequence[Piece],
        scratch: Scratch,
        carried: Carried,
    ) -> Numbers:
        """The bits of the scores of some pieces, shape (scores, pieces, elements)."""
        recorded = self._recording(("scores", measure), lambda: self._record_scores(measure))
        start, stop = pieces[0]
        found = np.empty((*recorded.shape, len(pieces), stop - start), np.float32)
        outputs = [(row.reshape(-1), "F32") for row in found]
        self._run(recorded, pieces, scratch, carried, outputs=outputs)
        return found.view(np.uint32)

    def count(
        self,
        measure: int,
        tallies: Tallies,
        start: int,
        stop: int,
        scratch: Scratch,
        carried: Carried,
    ) -> None:
        """Take the scores of elements [start, stop) into the tallies of open choices."""
        keys = tuple(tallies)
        recorded = self._recording(
            ("count", measure, keys), lambda: self._record_count(measure, keys)
        )
        counts = np.zeros(len(keys), dtype=COUNT)
        inside = scratch.array("inside", len(keys) * (stop - start), np.uint32)
        rows = inside.reshape(len(keys), stop - start)
        for i, tally in enumerate(tallies.values()):
            choice = tally.choice
            counts[i]["low"], counts[i]["high"] = choice.low, choice.high
            counts[i]["common"], counts[i]["inside"] = choice.common, address(rows[i])
        counts["of_nonzero"] = cast(Largest, self._formula.measures[measure]).of_nonzero
        self._run(recorded, [(start, stop)], scratch, carried, again=True, counts=counts)
        for i, tally in enumerate(tallies.values()):
            took = counts[i]
            found = rows[i][: int(took["found"])].copy()
            tally.take(int(took["above"]), int(took["equal"]), int(took["nonzero"]), found)

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Carried, place: Place | None
    ) -> Output:
        """Output elements [start, stop), rounded."""
        recorded = self._recording("output", self._record_output)
        piece = start, stop
        sources = self._sources(recorded, [piece], scratch)
        cuts, program = self._cuts(recorded, carried), recorded.program
        made = rounded(self._job, program, piece, self._inputs, sources, scratch, place, cuts)
        self._inputs.forget(piece)
        return made

    def _run(
        self,
        recorded: Recorded,
        pieces: Sequence[Piece],
        scratch: Scratch,
        carried: Carried,
        *,
        again: bool = False,
        **given: Any,
    ) -> tuple[Numbers, int]:
        keep = again and self._inputs.keeps
        inputs = self._sources(recorded, pieces, scratch, keep=keep)
        cuts = self._cuts(recorded, carried)
        found = recorded.program.run(pieces, inputs, scratch, cuts=cuts, **given)
        if recorded.extras and not keep:
            self._inputs.forget(pieces[0])
        return found

    def _sources(
        self,
        recorded: Recorded,
        pieces: Sequence[Piece],
        scratch: Scratch,
        *,
        keep: bool = False,
    ) -> list[Source]:
        """The inputs, and what is wanted besides them, perhaps made of them."""
        of = Range(pieces, self._inputs, scratch)
        extras = [(make(of), kind) for kind, make in recorded.extras]
        wanted = recorded.program.inputs
        return [*self._inputs.sources(wanted, pieces, scratch, keep=keep), *extras]

    def _cuts(self, recorded: Recorded, carried: Carried) -> Numbers:
        if carried.cuts is None:
            carried.cuts = np.zeros(len(recorded.cuts), dtype=CUT)
            for i, key in enumerate(recorded.cuts):
                choice = self._facts.choice(*key)
                budget, limit = choice.budgets.get(carried.span, 0), choice.threshold
                if budget == ALL:
                    budget, limit = 0, below(limit, 4)
                carried.cuts[i] = (limit, choice.threshold, budget)
        return carried.cuts

    def _recording(self, key: object, record: Callable[[], Recorded]) -> Recorded:
        """What is recorded for a pass; two workers that come at once record the same."""
        found = self._recorded.get(key)
        return found if found is not None else self._recorded.setdefault(key, record())

    def _record_totals(self, measure: int) -> Recorded:
        block = RecordedBlock(self._job, self._facts)
        nested = _totals(self._formula.measures[measure], block)
        program = compiled(totals=list(nested.flat), wide=self._job.dtype == "F32")
        return Recorded(program, block, nested.shape)

    def _record_scores(self, measure: int) -> Recorded:
        block = RecordedBlock(self._job, self._facts)
        rows = _scores(self._formula.measures[measure], block)
        return Recorded(compiled(stored=rows), block, (len(rows),))

    def _record_count(self, measure: int, keys: Sequence[tuple[int, int]]) -> Recorded:
        block = RecordedBlock(self._job, self._facts)
        rows = _scores(self._formula.measures[measure], block)
        return Recorded(compiled(counted=[(rows[s], i) for i, (s, _) in enumerate(keys)]), block)

    def _record_output(self) -> Recorded:
        block = RecordedBlock(self._job, self._facts)
        return Recorded(compiled(stored=[_result(self._formula, block)]), block)


def _totals(measure: Measure, block: Any) -> Numbers:
    """The symbolic sums of a measure, an array of the shape of its lists."""
    if not isinstance(measure, Totals):
        raise TypeError("the measure has no totals")
    sums = np.array(measure.of(block), dtype=object)
    if not all(isinstance(total, Total) for total in sums.flat):
        raise TypeError("the measure gives something else than sums")
    return sums


def _scores(measure: Measure, block: Any) -> list[Values]:
    """The symbolic scores of a measure."""
    if not isinstance(measure, Largest):
        raise TypeError("the measure has no scores")
    return _symbolic(list(measure.scores(block)))


def _result(formula: Elementwise, block: Any) -> Values:
    """The symbolic result of a formula."""
    return _symbolic([formula.apply(block)])[0]


def _symbolic(found: list[Any]) -> list[Values]:
    if not all(isinstance(values, Values) for values in found):
        raise TypeError("the formula gives something else than values")
    return found


def recordable(job: Job, formula: Elementwise) -> bool:
    """Whether all of a formula can be recorded; tried with made-up facts."""
    facts = _MadeUp(job, formula)
    try:
        for measure in formula.measures:
            block = RecordedBlock(job, facts)
            if isinstance(measure, Totals):
                facts.totals.append(np.ones(_totals(measure, block).shape))
            else:
                facts.totals.append(np.ones(()))
                _scores(measure, block)
        _result(formula, RecordedBlock(job, facts))
    except Exception:  # noqa: BLE001 - torch can do what symbols cannot, or says what is wrong
        return False
    return True


class _MadeUp(Facts):
    """Every total is 1, and so is every threshold."""

    def __init__(self, job: Job, formula: Elementwise) -> None:
        super().__init__(job, formula, 0)
        self.totals: list[Numbers] = []

    def known(self, measure: int) -> Numbers:
        return self.totals[measure]

    def choice(self, measure: int, score: int, choice: int) -> Choice:
        del measure, score, choice
        return Choice(1, 2, threshold=1.0)

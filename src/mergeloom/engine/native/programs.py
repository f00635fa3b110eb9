"""From recorded formulas to the program that tiles.c runs."""

from __future__ import annotations

import ctypes
import functools
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mergeloom.checkpoint.open_files import OpenFile, read_into
from mergeloom.engine.kernel import Place, unwritable
from mergeloom.engine.native.library import (
    CHANCE,
    INSTRUCTION,
    RANKING,
    TILE,
    Operation,
    ranking_bytes,
    run_program,
)
from mergeloom.engine.native.shared_object import CHUNK, KINDS
from mergeloom.engine.native.values import Total, Values
from mergeloom.engine.randomness import Chance
from mergeloom.engine.scratch import Scratch
from mergeloom.errors import CheckpointError
from mergeloom.types import DTYPES

Numbers = np.ndarray[Any, Any]
Buffer = tuple[Any, str]
"""A writable buffer (None for one that is not used) and the safetensors dtype of what is in it."""


Piece = tuple[int, int]
"""Elements [start, stop) of a tensor."""


class Stored(NamedTuple):
    """A tensor whose elements are read from a file while a program runs.

    Args:
        file: is open.
        offset: of the tensor's first element, in bytes.
        dtype: safetensors dtype name.
        kept: a buffer for all that is read, for other programs; without it that is gone then.
    """

    file: OpenFile
    offset: int
    dtype: str
    kept: Any = None


Source = Buffer | Stored
"""An input of a program: in memory what it asks for and nothing else, or a whole tensor."""


class Ranked(NamedTuple):
    """Sizes that are not kept: they and random words choose elements; see ranks.py.

    Args:
        key: of the words.
        row: elements of a row; pieces are whole rows.
        chances: see :class:`mergeloom.engine.ranks.Chances`.
        chosen: bools, of every element.
        left: bools, of every row: whether it must be sorted instead.
    """

    key: int
    row: int
    chances: tuple[float, float]
    chosen: Numbers
    left: Numbers


Target = Buffer | Place | Ranked
"""An output of a program: memory for what it makes and nothing else, or a tensor in a file."""

LOADS = (Operation.LOAD, Operation.LOAD_MINUS)

NONE: Numbers = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Program:
    """Instructions, the chances they name, how many registers and totals, and which inputs."""

    instructions: Numbers
    chances: Numbers
    registers: int
    totals: int
    inputs: frozenset[int]

    @functools.cached_property
    def at(self) -> int:
        """Where the instructions are in memory."""
        at: int = self.instructions.ctypes.data
        return at

    def run(
        self,
        pieces: Sequence[Piece],
        inputs: Sequence[Source],
        scratch: Scratch,
        *,
        outputs: Sequence[Target] = (),
        totals: Numbers | None = None,
        cuts: Numbers = NONE,
        counts: Numbers = NONE,
    ) -> tuple[Numbers, int]:
        """Run over equally long pieces: the totals, and how many stored ones are not finite.

        In memory one piece lies behind the other. Given the ``totals`` of the pieces before these,
        it adds to them, with the result that one run over all has.

        Raises:
            CheckpointError: a file ended, or could not be read.
            OutputError: a file could not be written.
        """
        run = run_program()
        if run is None:
            raise RuntimeError("the library was not compiled")
        starts = np.array([start for start, _ in pieces], np.int64)
        size = pieces[0][1] - pieces[0][0]
        totals = np.zeros(self.totals) if totals is None else totals
        registers = scratch.bytes("registers", max(1, self.registers) * TILE * 4)
        chunk = min(size, _chunk(outputs))
        places = [_place(given, chunk, n, scratch) for n, given in enumerate((*inputs, *outputs))]
        table = np.array(places, np.int64)
        found = np.empty(2 * len(places), np.int64)
        own = (totals, cuts, self.chances, counts, registers)
        state = np.array([0, 0, *map(address, own), 0], np.int64)
        bad = run(
            self.at, len(self.instructions), address(starts), len(starts), size, chunk,
            address(table), len(inputs), len(outputs), address(found), address(state),
        )  # fmt: skip
        if bad < 0 and -bad > len(inputs):
            raise unwritable(ctypes.get_errno())
        if bad < 0:
            raise _unreadable(inputs[-1 - bad], pieces)
        return totals, bad


def compiled(
    stored: Sequence[Values] = (),
    totals: Sequence[Total] = (),
    counted: Iterable[tuple[Values, int]] = (),
    *,
    wide: bool = False,
) -> Program:
    """The program that stores values in outputs 0, 1, …, adds up totals and takes counts.

    Args:
        stored: one for each output.
        totals: one for each total.
        counted: scores and the number of the count that takes them.
        wide: multiply and add up in float64, not only what float32 gave for some hundred elements.
    """
    one, two = Operation.SUM, Operation.DOT
    if wide:
        one, two = Operation.SUM_WIDE, Operation.DOT_WIDE
    roots = [
        *((Operation.STORE, (v,), 0, i) for i, v in enumerate(stored)),
        *((one if len(t.parts) == 1 else two, t.parts, i, 0) for i, t in enumerate(totals)),
        *((Operation.COUNT, (_sized(v),), 0, i) for v, i in counted),
    ]  # fmt: skip
    return _Compiler(roots).program(len(totals))


Root = tuple[Operation, tuple[Values, ...], int, int]
"""What is done with values in the end: (operation, values, the total, the output or count)."""


class _Compiler:
    """Gives every value a register from where it is made to where it is last used."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = roots
        self._uses: Counter[Values] = Counter()
        self._registers: dict[Values, int] = {}
        self._free: list[int] = []
        self._count = 0
        self._chances: list[Chance] = []
        self._made: list[tuple[int, int, int, int, float, float]] = []
        self._fused = dict(_parts_first(part for _, parts, _, _ in roots for part in parts))
        for _, parts, _, _ in roots:
            self._uses.update(parts)
        for fused in self._fused.values():
            self._uses.update(fused.parts)

    def program(self, totals: int) -> Program:
        """The whole program."""
        made = iter(self._fused)
        for operation, parts, to, number in self._roots:
            while any(part not in self._registers for part in parts):
                self._make(next(made))
            places = [self._registers[part] for part in parts]
            second = places[1] if len(places) > 1 else number
            self._made.append((operation, to, places[0], second, 0.0, 0.0))
            for part in parts:
                self._used(part)
        inputs = frozenset(v.at for v in self._fused.values() if v.operation in LOADS)
        instructions = np.array(self._made, dtype=INSTRUCTION)
        chances = np.array(self._chances, dtype=CHANCE)
        return Program(instructions, chances, self._count, totals, inputs)

    def _make(self, values: Values) -> None:
        """The instruction that makes values out of parts that were made before."""
        fused = self._fused[values]
        places = [self._registers[part] for part in fused.parts]
        to = self._take()  # before those of the parts are free: tiles.c wants another one
        a, b = (*places, self._number(fused), fused.each)[:2]
        self._made.append((fused.operation, to, a, b, fused.x, fused.y))
        self._registers[values] = to
        for part in fused.parts:
            self._used(part)

    def _number(self, values: Values) -> int:
        """Which input, cut or chance an instruction reads."""
        if values.chance is None:
            return values.at
        self._chances.append(values.chance)
        return len(self._chances) - 1

    def _take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._count += 1
        return self._count - 1

    def _used(self, values: Values) -> None:
        self._uses[values] -= 1
        if self._uses[values] == 0:
            heapq.heappush(self._free, self._registers[values])


def _parts_first(roots: Iterable[Values]) -> Iterator[tuple[Values, Values]]:
    """All that values are made of, each once and after its parts, and as instructions make it.

    Not recursive: a sum over the pairs of 40 models is a chain of 780 additions.
    """
    seen: set[Values] = set()
    for root in roots:
        waiting: list[tuple[Values, Values | None]] = [(root, None)]
        while waiting:
            values, fused = waiting.pop()
            if fused is not None:
                yield values, fused
            elif values not in seen:
                seen.add(values)
                fused = _fused(values)
                waiting.append((values, fused))
                waiting.extend((part, None) for part in reversed(fused.parts))


def _fused(values: Values) -> Values:
    """Values as their instruction makes them: some do what two or three operations ask for.

    Each rounds as those would, so which ones there are changes no result.
    """
    if values.operation is Operation.ADD:
        for other, one in (values.parts, values.parts[::-1]):
            by, scaled = 1.0, one
            if scaled.operation is Operation.MUL_NUMBER:
                by, scaled = scaled.x, scaled.parts[0]
            if scaled.operation is Operation.SIGN:
                return Values(Operation.ADD_SIGN, (other, scaled.parts[0]), by)
            if scaled is not one:
                return Values(Operation.ADD_SCALED, (other, scaled), by)
    inner = values.parts[0] if values.parts else values
    kinds = values.operation, inner.operation
    if kinds == (Operation.SUB, Operation.LOAD):
        return Values(Operation.LOAD_MINUS, values.parts[1:], at=inner.at)
    if kinds == (Operation.MUL, Operation.SUB) and values.parts[1] is inner:
        return Values(Operation.SUB_SQUARED, inner.parts)
    if kinds == (Operation.CLAMP, Operation.MUL) and values.y == math.inf:
        return Values(Operation.MUL_AT_LEAST, inner.parts, values.x)
    if kinds == (Operation.SIGN, Operation.ADD_NUMBER) and inner.x == 0.5:
        (first,) = inner.parts
        if first.operation is Operation.SIGN:
            return Values(Operation.SIDE, first.parts)
    return values


def _sized(scores: Values) -> Values:
    """What a count can take for scores: it looks at sizes alone."""
    return scores.parts[0] if scores.operation is Operation.ABS else scores


def address(data: Any) -> int:
    """Where a writable buffer begins in memory; 0 for an empty one and for None."""
    if data is None or not len(data):
        return 0
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def arrays(buffers: Sequence[Buffer]) -> Numbers:
    """What tiles.c calls arrays: pairs of an address and a kind."""
    return np.array([(address(data), KINDS[dtype]) for data, dtype in buffers], dtype=np.int64)


def _unreadable(given: Source, pieces: Sequence[Piece]) -> CheckpointError:
    """What Python's way of reading says of elements that could not be read."""
    if not isinstance(given, Stored):
        raise TypeError("a buffer is not read")
    path, bytes_ = given.file.path, DTYPES[given.dtype].bytes
    try:
        for start, stop in pieces:
            buffer = memoryview(bytearray((stop - start) * bytes_))
            read_into(path, given.offset + start * bytes_, buffer)
    except CheckpointError as error:
        return error
    return CheckpointError(f"{path} cannot be read")


def _chunk(outputs: Sequence[Target]) -> int:
    """Elements that are done at once: whole rows where they choose among those of a row."""
    rows = {target.row for target in outputs if isinstance(target, Ranked)}
    if len(rows) > 1:
        raise ValueError(f"choices among rows of {sorted(rows)} elements at once")
    return max(1, CHUNK // row) * row if (row := max(rows, default=0)) else CHUNK


def _place(
    given: Source | Target, chunk: int, number: int, scratch: Scratch
) -> tuple[int, int, int, int, bool, int]:
    """What programs.c calls a place."""
    kept, ranking = None, 0
    if isinstance(given, Stored):
        fd, offset, dtype, kept = given.file.fd, given.offset, given.dtype, given.kept
    elif isinstance(given, Place):
        fd, offset, dtype = given
    elif isinstance(given, Ranked):
        fd, offset, dtype = -1, 0, "F32"
        ranking = _ranking(given, chunk, number, scratch)
    else:
        return address(given[0]), KINDS[given[1]], -1, 0, True, 0
    keeps = kept is not None
    if not keeps:
        kept = scratch.bytes(("chunk", number), chunk * DTYPES[dtype].bytes)
    return address(kept), KINDS[dtype], fd, offset, keeps, ranking


def _ranking(given: Ranked, chunk: int, number: int, scratch: Scratch) -> int:
    """Where the struct of ranks.h is."""
    found = scratch.array(("ranking", number), RANKING.itemsize, np.uint8)
    found.view(RANKING)[0] = (
        given.key, given.row, *given.chances,
        address(scratch.bytes(("ranks", number), ranking_bytes(given.row))),
        address(scratch.bytes(("words", number), 2 * chunk)),
        address(given.chosen), address(given.left),
    )  # fmt: skip
    return address(found)

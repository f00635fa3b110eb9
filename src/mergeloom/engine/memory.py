"""The memory that a run takes at most. Imports neither torch nor numpy: a plan states it too.

These are bounds, not estimates: ``--max-memory`` is a promise. They are written down from what the
kernels hold, so whoever changes a kernel's buffers changes them here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mergeloom.checkpoint.views import stored_at
from mergeloom.engine.native.shared_object import CHUNK, READS, STORED, why_missing
from mergeloom.engine.sizes import (
    BLOCK,
    BLOCKS_PER_SPAN,
    REMEMBERED,
    block_row,
    remembered_bytes,
    sample_of,
    sample_step,
)
from mergeloom.methods import METHODS, UNCHANGED, Elementwise, Largest
from mergeloom.planning.plan import Job, Plan
from mergeloom.types import DTYPES, numel
from mergeloom.vocabulary.tokenizer import read_tokenizer

DEFAULT_MEMORY = 1 << 30

PROCESS = 64 << 20
"""Bytes of a process that has imported this package, numpy, and what reads the hub."""

PROCESS_WITH_TORCH = 380 << 20
"""The same of one that has imported torch too."""

INPUT = 8 << 10
"""Bytes that a plan takes for each tensor that goes into a job."""

PARSED = 16
"""Bytes that a tokenizer takes for each byte of its file, once it is parsed."""

KEPT = 64 << 20
"""Most bytes of a tensor's inputs that stay in memory from one pass to the next."""

FLOAT = 4
"""Bytes of the widest number that tiles know."""

REGISTERS = 32 << 10
"""Bytes that the registers of a program take for each input, at most."""

Bytes = Counter[str]
"""Purpose → bytes. Jobs share buffers, which grow to the largest, so two jobs take their ``|``."""


@dataclass(frozen=True)
class Memory:
    """Most bytes a run takes.

    Args:
        process: before there is any buffer.
        worker: of a worker and the tensor it is at. There are never more tensors in progress than
            workers: the next one starts only when all spans of the others are handed out.
        held: the part of ``worker`` that holds a block's inputs while it is computed.
        kept: of the inputs of one tensor, which stay for its next pass where there is room.
    """

    process: int
    worker: int
    held: int
    kept: int

    def least(self, threads: int) -> int:
        """With no inputs kept from one pass to the next."""
        return self.process + threads * self.worker

    def peak(self, threads: int, memory: int = DEFAULT_MEMORY) -> int:
        """With as many inputs kept from one pass to the next as fit into ``memory``."""
        return self.least(threads) + self._room(threads, memory)

    def affordable(self, threads: int, memory: int) -> int:
        """How many of ``threads`` workers fit into ``memory`` bytes; 0 if not even one does."""
        return max(0, min(threads, (memory - self.process) // self.worker))

    def spare(self, threads: int, memory: int) -> tuple[int, int]:
        """Bytes for the inputs of one tensor that stay for a pass, and for all that stay."""
        room = self._room(threads, memory)
        return min(KEPT, room // threads), room + threads * self.held

    def _room(self, threads: int, memory: int) -> int:
        return max(0, min(threads * self.kept, memory - self.least(threads)))


def memory_of(plan: Plan, device: str = "cpu", *, torch: bool = False) -> Memory:
    """What a plan needs on a device; ``torch`` says that torch is imported whatever the jobs."""
    everything = [job for part in (*plan.chain, plan) for job in part.jobs]
    on_cpu = device == "cpu"
    torch = torch or not on_cpu or any(_in_torch(job) for job in everything)
    buffers, passed, kept = Bytes(), 0, 0
    for job in plan.jobs:
        made, left = _plain_bytes(job) if on_cpu and not _in_torch(job) else _torch_bytes(job)
        buffers |= made
        passed = max(passed, left)
        if on_cpu and job.passes > 1 and job.nbytes_in <= KEPT and _in_tiles(job):
            kept = max(kept, job.nbytes_in)
    process = PROCESS_WITH_TORCH if torch else PROCESS
    process += INPUT * sum(len(job.inputs) for job in everything) + _tokenizer_bytes(plan)
    return Memory(process, max(1, buffers.total() + passed), buffers["held"], kept)


def _in_torch(job: Job) -> bool:
    """Whether torch is imported for a job on the CPU: to compute it or to read its inputs."""
    if not READS or any(stored_at(entry.view, 0) is None for entry in job.inputs):
        return True
    return not (_is_copied(job) or _in_tiles(job))


def _is_copied(job: Job) -> bool:
    """Whether the output has the bytes of the one input."""
    return job.formula() in (None, UNCHANGED) and job.inputs[0].view.dtype == job.dtype


def _in_tiles(job: Job) -> bool:
    """Whether tiles compute a job, as far as is known without recording its formula.

    They do wherever a formula is this package's own; another's counts as one for torch.
    """
    if why_missing() or not {job.dtype, *(entry.view.dtype for entry in job.inputs)} <= STORED:
        return False
    formula = job.formula()
    if isinstance(formula, Elementwise):
        return METHODS[job.method or ""].formula.__module__.startswith("mergeloom.methods.")
    return formula is None or formula.vectors == "tensor" or len(job.shape) < 2


def _plain_bytes(job: Job) -> tuple[Bytes, int]:
    """A worker's buffers, and what passes leave, of a job that is copied or computed in tiles.

    Tiles read and write files by themselves, chunk by chunk.
    """
    formula, inputs = job.formula(), len(job.inputs)
    if _is_copied(job):
        block = min(BLOCK, numel(job.shape)) * DTYPES[job.dtype].bytes
        return Bytes(copied=block, exponents=2 * block), 0
    whole_rows = isinstance(formula, Elementwise) and formula.whole_rows
    size, row = numel(job.shape), block_row(job)
    block = min(size, max(1, BLOCK // row) * row)
    span = min(size, block * BLOCKS_PER_SPAN)
    chunk = FLOAT * min(span, max(CHUNK, row))
    made = Bytes(registers=REGISTERS * inputs, chunks=chunk * (inputs + 1))
    if job.exact:
        made += Bytes(out=FLOAT * span, exponents=FLOAT * span)
    if not isinstance(formula, Elementwise):
        return made, 0
    step = block if whole_rows else span
    most, everything = _sample_sizes(size, span, row) if size else (0, 0)
    passed = 0
    for measure in formula.measures:
        if not isinstance(measure, Largest):
            continue
        choices = measure.counts([size] * max(1, inputs - 1), size)
        scores, keys = len(choices), sum(map(len, choices))
        # All scores of a step that lie inside the brackets, and of a span in the tallies.
        made |= Bytes(inside=FLOAT * step * keys, tallies=FLOAT * span * keys + (1 << 20))
        made |= Bytes(scores=2 * FLOAT * most * scores)
        room = min(remembered_bytes(size, inputs), FLOAT * size * keys)
        # The samples of all scores. While they are put together the ranges' pieces are there too;
        # later, instead, the scores inside brackets, and a copy and masks of one choice's.
        sample = FLOAT * everything * scores
        settling = room + 3 * room // (2 * max(1, keys))
        passed = max(passed, sample + max(sample + FLOAT * everything, settling))
    if whole_rows:
        most = max(most, step)
        held = sum(DTYPES[entry.view.dtype].bytes for entry in job.inputs) * most
        made |= Bytes(held=held, inputs=held, extras=FLOAT * most * inputs, ranks=64 * most)
        made["chunks"] *= 2
        # Random choices as bits, and the numbers of rows.
        rows = size // max(1, job.shape[-1] if job.shape else 1)
        passed += min(REMEMBERED, size * inputs // 8) + min(REMEMBERED, 2 * FLOAT * rows)
    return made, passed


def _torch_bytes(job: Job) -> tuple[Bytes, int]:
    """The same of a job that torch computes, or whose inputs are computed while they are read.

    Raw and widened inputs, sums and output.
    """
    inputs, block = len(job.inputs), max(BLOCK, block_row(job))
    formula, made = job.formula(), Bytes(torch=block * (inputs * (8 + 8 + 8) + 8 * 8))
    if isinstance(formula, Elementwise) and formula.whole_rows:
        made["held"] = block * sum(DTYPES[entry.view.dtype].bytes for entry in job.inputs)
    return made, remembered_bytes(numel(job.shape), inputs)


def _sample_sizes(size: int, span: int, row: int) -> tuple[int, int]:
    """Most elements that the sample of one range has, and that all have."""
    pieces = sample_of(0, span, size, row)
    taken = sum(stop - start for start, stop in pieces)
    each = taken // sample_step(pieces, 0, span, size) + 1
    last = min(span, 3 * taken)  # of a shorter range all may be taken, if it is less than that
    return last, each * (size // span) + last


def _tokenizer_bytes(plan: Plan) -> int:
    """Bytes that planning took for tokenizers, which are parsed where they are not all the same."""
    found = [tokenizer for c in plan.inputs if (tokenizer := read_tokenizer(c))]
    size = sum(len(content) for tokenizer in found for content in tokenizer.files.values())
    alike = len({tokenizer.digest for tokenizer in found}) < 2 and plan.vocabulary is None
    return size if alike else size * PARSED

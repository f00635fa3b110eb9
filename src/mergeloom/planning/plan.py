"""The plan: a flat list of jobs and everything else that is decided before a weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mergeloom._version import __version__
from mergeloom.errors import Problem
from mergeloom.methods import METHODS, Arguments, Formula, passes
from mergeloom.types import Checkpoint, Recipe, Scalar, View, nbytes, numel

DEFAULT_SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True)
class Options:
    """What a user can ask of a plan besides the recipe.

    Args:
        out_shard_size: largest shard in bytes; a larger tensor gets a shard of its own.
        seed: of random methods; recorded in the output.
        lenient: unknown recipe keys and filters that match nothing are warnings.
        unsafe_truncate_embeddings: cut vocabulary tables to the smallest model's rows.
        allow_crimes: merge models of different kinds as far as their tensors match.
        copy_tokenizer: copy the donor's tokenizer files.
        cache_dir: the hub cache to use.
        describe_vocabulary: fill in ``Plan.vocabulary`` even when nothing changes; it means reading
            every tokenizer.
        intermediates: where results of earlier documents of a chain go; beside the output if None.
        arch_file: rows that say what the rules cannot tell about a model's structure.
        cast_all: ``dtype`` also casts tensors that are kept in float32 on purpose.
    """

    out_shard_size: int = DEFAULT_SHARD_SIZE
    seed: int = 0
    lenient: bool = False
    unsafe_truncate_embeddings: bool = False
    allow_crimes: bool = False
    copy_tokenizer: bool = True
    cache_dir: Path | None = None
    intermediates: Path | None = None
    arch_file: Path | None = None
    cast_all: bool = False
    describe_vocabulary: bool = False


@dataclass(frozen=True)
class JobInput:
    """One tensor that goes into a job, with the parameters that belong to it."""

    model: str
    tensor: str
    view: View
    parameters: Mapping[str, Scalar | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One output tensor.

    Args:
        name, dtype, shape: of the output tensor.
        method: the method's name, or None for a tensor that is copied from its one input.
        inputs: the base first if ``has_base``, then the models in the recipe's order.
        has_base: whether the first input is the method's base.
        parameters: the global parameters as plain values.
        position: its place in gradients, 0 to 1.
        why: for a copied tensor, the reason.
        exact: element ranges [start, stop) that are copied from the first input whatever the
            method computes: the rows of tokens that the recipe forces.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str | None
    inputs: tuple[JobInput, ...]
    has_base: bool = False
    parameters: Mapping[str, Scalar | None] = field(default_factory=dict)
    position: float = 0.0
    why: str = ""
    exact: tuple[tuple[int, int], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the output tensor."""
        return nbytes(self.dtype, self.shape)

    @property
    def nbytes_in(self) -> int:
        """Bytes of all input tensors, each counted once."""
        return sum(nbytes(i.view.dtype, i.view.shape) for i in self.inputs)

    def arguments(self) -> Arguments:
        """The method's arguments for this tensor."""
        models = self.inputs[1:] if self.has_base else self.inputs
        return Arguments(self.parameters, tuple(i.parameters for i in models), self.has_base)

    @property
    def passes(self) -> int:
        """How often the inputs are read."""
        return passes(self.formula())

    def formula(self) -> Formula | None:
        """What the engine runs; None for a copy. May raise MethodError."""
        return self._formula

    @cached_property
    def _formula(self) -> Formula | None:
        """Made once: the plan, its totals and the engine all ask for it."""
        return METHODS[self.method].formula(self.arguments()) if self.method else None


@dataclass(frozen=True)
class Shard:
    """One output file: which jobs write into it and at which byte of its data."""

    file: str
    jobs: tuple[int, ...]
    offsets: tuple[int, ...]
    data_bytes: int


@dataclass(frozen=True)
class SideFile:
    """A file that is not weights: copied unchanged from ``root``, or ``content`` made here."""

    root: Path
    name: str
    content: bytes | None = None


@dataclass(frozen=True)
class FilterUse:
    """How many tensors a filter of the recipe matched, of how many it was asked about."""

    where: str
    filter: str
    matched: int
    asked: int


@dataclass(frozen=True)
class ModelVocabulary:
    """What becomes of one input's vocabulary.

    Args:
        model: its label.
        tokens: of its tokenizer; None without one.
        rows: of its embedding.
        shared: its tokens that the donor's tokenizer has too.
        moved: shared tokens whose id is another one in the output.
        adds: its tokens that are appended to the output, in order.
        own, taken, averaged, zero, padded: the output's rows by where this input's come from:
            its own, another model's, a mean of several rows, zeros, the mean of all its rows.
    """

    model: str
    tokens: int | None
    rows: int
    shared: int = 0
    moved: int = 0
    adds: tuple[str, ...] = ()
    own: int = 0
    taken: int = 0
    averaged: int = 0
    zero: int = 0
    padded: int = 0


@dataclass(frozen=True)
class VocabularySummary:
    """The output's vocabulary and what becomes of every input's.

    Args:
        source: the model whose tokenizer the output's is made from.
        tokens, rows: of the output.
        models: the inputs in the recipe's order, then lenders.
        conflicts: added tokens on whose meaning the inputs disagree.
        forced: tokens whose row the recipe forces.
        unknown: tokens that no input has a row for; theirs are zeros.
    """

    source: str
    tokens: int
    rows: int
    models: tuple[ModelVocabulary, ...]
    conflicts: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One merge, ready to run. Making it read no weight; printing it shows every decision.

    Args:
        recipe: the recipe it was made from.
        jobs: one for each output tensor, in output order.
        shards: the output files.
        config: the output's config.json, or None when the inputs have none.
        side_files: files copied from the donor.
        inputs: the opened inputs, in the recipe's order, the donor's among them.
        donor: label of the input that gave config and side files.
        seed: of random methods.
        filters: what every filter of the recipe matched.
        unused: input label → tensors of it that nothing uses.
        vocabulary: what happens to the inputs' tokens; None when nothing does.
        warnings: what the user should know.
        chain: the plans of earlier documents that this one needs, in running order.
        folder: where a chain's intermediate result goes; None for the final one.
    """

    recipe: Recipe
    jobs: tuple[Job, ...]
    shards: tuple[Shard, ...]
    config: Mapping[str, Any] | None
    side_files: tuple[SideFile, ...]
    inputs: tuple[Checkpoint, ...]
    donor: str
    seed: int = 0
    filters: tuple[FilterUse, ...] = ()
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vocabulary: VocabularySummary | None = None
    warnings: tuple[Problem, ...] = ()
    chain: tuple[Plan, ...] = ()
    folder: Path | None = None

    @property
    def bytes_in(self) -> int:
        """Bytes of weights that the jobs read, as often as they read them."""
        return sum(job.nbytes_in * job.passes for job in self.jobs)

    @property
    def bytes_out(self) -> int:
        """Bytes of weights that are written."""
        return sum(job.nbytes for job in self.jobs)

    @property
    def disk(self) -> int:
        """Bytes of weights on the disk at the end: of a chain, the results of all documents."""
        return self.bytes_out + sum(part.bytes_out for part in self.chain)

    @property
    def parameter_count(self) -> int:
        """Number of elements in the output."""
        return sum(numel(job.shape) for job in self.jobs)

    @property
    def side_bytes(self) -> int:
        """Bytes of the files beside the weights that come from the donor."""
        return sum(
            (f.root / f.name).stat().st_size if f.content is None else len(f.content)
            for f in self.side_files
        )

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        """The models it is made from: for a chain, those of every document, without results."""
        made = {part.recipe.name for part in self.chain}
        every = [c for part in (*self.chain, self) for c in part.inputs if c.label not in made]
        return tuple({c.label: c for c in every}.values())

    def weight_files(self) -> tuple[Path, ...]:
        """Every weight file the jobs read, sorted."""
        return tuple(sorted({f for job in self.jobs for i in job.inputs for f in i.view.files}))

    @cached_property
    def digest(self) -> str:
        """sha256 of every decision and of the inputs' identity (sizes and times).

        Two runs with the same digest and the same arithmetic write the same bytes; a partial
        output is only continued under those it was started with.
        """
        sha = hashlib.sha256()
        for part in self._identity():
            sha.update(json.dumps(part, sort_keys=True, default=str).encode())
            sha.update(b"\n")
        return sha.hexdigest()

    def _identity(self) -> Iterator[Any]:
        yield __version__, self.recipe.text, self.seed, self.donor, self.config
        # A chain's intermediate is named after its own digest and a hub snapshot after its
        # commit, so their paths say it all; only local inputs can change under the same name.
        named = {c.root for c in self.inputs if not c.is_local}
        named |= {folder for p in self.chain if (folder := p.folder)}
        for job in self.jobs:
            inputs = [(i.model, i.tensor, repr(i.view), i.parameters) for i in job.inputs]
            yield job.name, job.dtype, job.shape, job.method, inputs, job.has_base, job.parameters
            yield job.exact
        for shard in self.shards:
            yield shard.file, shard.jobs, shard.offsets
        for path in self.weight_files():
            yield str(path), None if path.parent in named else _stamp(path)
        for file in self.side_files:
            if file.content is not None:
                yield file.name, hashlib.sha256(file.content).hexdigest()
            else:
                yield file.name, None if file.root in named else _stamp(file.root / file.name)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and modification time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns

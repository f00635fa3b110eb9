"""What one model is made of, in the words a recipe can use. Reads headers only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeloom.architecture import Layout, Stack, understand
from mergeloom.architecture.config import quantization_of, says_tied
from mergeloom.architecture.modules import module_names, module_tensors, part_of
from mergeloom.architecture.rows import Rows, read_rows
from mergeloom.checkpoint import open_checkpoint
from mergeloom.errors import CheckpointError, Problem, Problems
from mergeloom.recipe import parse_reference
from mergeloom.types import ARITHMETIC_DTYPES, Checkpoint, nbytes, numel


@dataclass(frozen=True)
class StackFound:
    """A stack of layers ``{prefix}.{i}.…``.

    Args:
        prefix: what its tensor names begin with.
        length: its layers, without multi-token-prediction layers (``extra``) behind them.
        count_key: where config.json holds the length; None for one that cannot be sliced.
        module: the module it belongs to; ``is_main``: the one that plain ``slices`` mean.
        kinds: the layers grouped by what they are made of: (tensors in each, the layers).
    """

    prefix: str
    length: int
    count_key: str | None
    module: str
    is_main: bool
    extra: int = 0
    kinds: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Module:
    """A part with a name that a recipe can use, with its tensors and parameters."""

    name: str
    tensors: int
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """One model. Shapes are lists of axes, sizes are bytes.

    Args:
        label: how it was named.
        architecture, model_type: as config.json says, None where it does not.
        stacks, modules: in the order of the file.
        embeddings, heads: tables indexed by the vocabulary, name → shape.
        vocabulary: every tensor with an axis that counts tokens, name → that axis.
        tied: whether the head is the input embedding; None when there is no embedding.
        tensors, parameters, nbytes: totals. ``dtypes``: dtype → bytes.
        quantization: how its weights are quantized, None when they are not.
        copied: tensors of formats that are copied and never averaged (integers, flags).
        unrecognised: tensors that no rule knows: merged like all others, by their names.
        side_files: everything in the folder that is not weights.
        warnings: what opening it had to tell.
    """

    label: str
    architecture: str | None
    model_type: str | None
    stacks: tuple[StackFound, ...]
    modules: tuple[Module, ...]
    embeddings: Mapping[str, tuple[int, ...]]
    heads: Mapping[str, tuple[int, ...]]
    vocabulary: Mapping[str, int]
    tied: bool | None
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    quantization: str | None
    copied: tuple[str, ...]
    unrecognised: tuple[str, ...]
    side_files: tuple[str, ...]
    revision: str | None = None
    warnings: tuple[Problem, ...] = field(default=())


def inspect(
    model: str | os.PathLike[str],
    *,
    arch_file: Path | None = None,
    cache_dir: Path | None = None,
) -> Inspection:
    """Say what a model is made of, from its headers and config.json.

    Args:
        model: a folder, a weight file or a hub id, with ``@revision`` if wanted.
        arch_file: rows that say what the rules cannot tell.
        cache_dir: the hub cache to use.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
    """
    problems = Problems()
    reference = parse_reference(os.fspath(model))
    checkpoint = open_checkpoint(reference, problems, cache_dir=cache_dir)
    problems.raise_errors(CheckpointError)
    if checkpoint is None:
        raise CheckpointError(f"{model} cannot be opened")
    rows: Rows = read_rows(arch_file) if arch_file else ()
    return describe(checkpoint, rows, problems.warnings)


def describe(
    checkpoint: Checkpoint, rows: Rows = (), warnings: Sequence[Problem] = ()
) -> Inspection:
    """The same for a checkpoint that is open."""
    views, config = checkpoint.tensors, checkpoint.config or {}
    shapes = {name: view.shape for name, view in views.items()}
    layout = understand(shapes, checkpoint.config, rows)
    dtypes: Counter[str] = Counter()
    for view in views.values():
        dtypes[view.dtype] += nbytes(view.dtype, view.shape)
    classes: Any = config.get("architectures")
    return Inspection(
        label=checkpoint.label,
        architecture=str(classes[0]) if isinstance(classes, list) and classes else None,
        model_type=str(config["model_type"]) if "model_type" in config else None,
        stacks=tuple(_stack(layout, stack) for stack in layout.stacks),
        modules=tuple(_module(layout, name) for name in module_names(layout)),
        embeddings={name: shapes[name] for name in layout.embeddings},
        heads={name: shapes[name] for name in layout.heads},
        vocabulary=layout.vocabulary,
        tied=_tied(layout, config),
        tensors=len(views),
        parameters=sum(numel(shape) for shape in shapes.values()),
        nbytes=sum(dtypes.values()),
        dtypes=dict(dtypes.most_common()),
        quantization=quantization_of(config),
        copied=tuple(n for n, v in views.items() if v.dtype not in ARITHMETIC_DTYPES),
        unrecognised=layout.unrecognised,
        side_files=checkpoint.side_files,
        revision=checkpoint.revision,
        warnings=tuple(warnings),
    )


def _stack(layout: Layout, stack: Stack) -> StackFound:
    kinds: dict[object, list[int]] = {}
    sizes: dict[object, int] = {}
    for index in range(stack.length):
        suffixes = layout.suffixes.get((stack.prefix, index), ())
        kind = frozenset((s, layout.shapes[stack.tensor(index, s)]) for s in suffixes)
        kinds.setdefault(kind, []).append(index)
        sizes[kind] = len(suffixes)
    return StackFound(
        stack.prefix,
        stack.length,
        ".".join(stack.count_key) if stack.count_key else None,
        part_of(layout, f"{stack.prefix}.0"),
        stack == layout.main,
        stack.extra,
        tuple((sizes[kind], tuple(layers)) for kind, layers in kinds.items()),
    )


def _module(layout: Layout, name: str) -> Module:
    tensors = module_tensors(layout, name)
    return Module(name, len(tensors), sum(numel(layout.shapes[t]) for t in tensors))


def _tied(layout: Layout, config: Mapping[str, Any]) -> bool | None:
    """Tied when there is no head tensor, unless config.json says otherwise."""
    if not layout.embeddings:
        return None
    return not layout.heads and says_tied(config) is not False

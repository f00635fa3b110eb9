"""The public verbs: load a recipe, plan it, merge it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.errors import CheckpointError, Problems, RecipeError, nearest
from mergeloom.methods import METHODS
from mergeloom.planning import Options, Plan, default_intermediates, make_plan, merging_into
from mergeloom.recipe import load_recipe as _load
from mergeloom.types import Checkpoint, Recipe, View

if TYPE_CHECKING:
    import torch

    from mergeloom.engine.run import Settings

RecipeSource = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Args:
        out: the finished folder.
        plan: what was run.
        resumed: tensors that an interrupted earlier run had already finished.
        nonfinite: tensor → elements that are NaN or infinite (only with ``allow_nonfinite``).
        notes: tensor → remarks of the method, such as nearly opposite vectors.
        engine_seconds: from the first read to the last write, of all documents of a chain.
    """

    out: Path
    plan: Plan
    resumed: int = 0
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engine_seconds: float = 0.0


def load_recipe(source: RecipeSource, *, lenient: bool = False) -> Recipe:
    """Read a recipe and check everything that can be checked without the models.

    Args:
        source: a path to a YAML file, YAML text, or an already parsed mapping.
        lenient: unknown keys are ignored instead of refused.

    Raises:
        RecipeError: with every mistake in ``problems``.
    """
    return _load(source, lenient=lenient, methods=METHODS)


def _loaded(recipe: Recipe | RecipeSource, options: Options | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return load_recipe(recipe, lenient=options is not None and options.lenient)


def _planned(recipe: Recipe, options: Options | None) -> Plan:
    """The plan with all there is to tell: the recipe's own warnings before those of its models."""
    made = make_plan(recipe, options)
    return replace(made, warnings=(*recipe.warnings, *made.warnings))


def plan(recipe: Recipe | RecipeSource, options: Options | None = None) -> Plan:
    """Decide everything about a merge: jobs, shards, config, files. Reads headers only.

    Args:
        recipe: a loaded recipe, or anything :func:`load_recipe` takes.
        options: shard size, seed and the like; defaults otherwise.

    Raises:
        RecipeError, CheckpointError: with every mistake in ``problems``.
    """
    return _planned(_loaded(recipe, options), options)


def merge(
    recipe: Recipe | RecipeSource,
    out: str | os.PathLike[str],
    *,
    options: Options | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    device: str = "cpu",
    allow_nonfinite: bool = False,
    keep_intermediates: bool = False,
    card: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Merge models and write a complete model folder to ``out``.

    Args:
        recipe: a loaded recipe, or anything :func:`load_recipe` takes.
        out: the folder to make. It appears only when everything in it is finished.
        options: what the plan depends on.
        overwrite: replace a folder that is not empty.
        threads: workers, by default the cores this process may use.
        max_memory: bytes the process may take, by default 1 GiB.
        device: torch device for the arithmetic.
        allow_nonfinite: count NaN and infinity in the result instead of stopping.
        keep_intermediates: keep the results of earlier documents of a chain.
        card: write README.md and mergekit_config.yml.
        progress: called with (bytes read, bytes written) of each finished piece.

    Returns:
        What was done.

    Raises:
        RecipeError, CheckpointError: before any weight is read.
        MergeError: a tensor could not be computed; a second call continues.
        OutputError: the target cannot be written.
    """
    from mergeloom.engine.memory import DEFAULT_MEMORY
    from mergeloom.engine.run import Settings
    from mergeloom.output.directory import check_target

    target = Path(out)
    check_target(target, overwrite=overwrite)
    options = merging_into(target, options or Options())
    planned = _planned(_loaded(recipe, options), options)
    memory = DEFAULT_MEMORY if max_memory is None else max_memory
    settings = Settings(threads, memory, device, allow_nonfinite, progress)
    return run_plan(planned, target, settings, keep_intermediates=keep_intermediates, card=card)


def run_plan(
    planned: Plan,
    target: Path,
    settings: Settings,
    *,
    keep_intermediates: bool = False,
    card: bool = True,
) -> Merged:
    """Run a plan that was made for ``target``; see :func:`merge`."""
    from mergeloom.checkpoint import close_files, fetch
    from mergeloom.engine.run import check_settings
    from mergeloom.output.directory import check_apart, check_space
    from mergeloom.output.write import write

    parts = (*planned.chain, planned)
    check_apart(target, [(c.label, c.root) for part in parts for c in part.inputs])
    for part in parts:
        check_settings(part, settings)
    for folder, needed in _disk_needed(parts, target).items():
        check_space(folder, needed)
    seconds = 0.0
    try:
        for part in parts:
            for checkpoint in part.inputs:
                fetch(checkpoint, part.weight_files())
            if part.folder is None:
                written = write(part, target, settings, card=card)
                seconds += written.report.seconds
            elif not part.folder.exists():  # named after its content and moved in when complete
                seconds += write(part, part.folder, settings, card=card).report.seconds
    finally:
        close_files()
    if not keep_intermediates:
        _remove_intermediates(planned, target)
    return Merged(
        target,
        planned,
        written.resumed,
        written.report.nonfinite,
        written.report.notes,
        seconds,
    )


def _disk_needed(parts: Iterable[Plan], target: Path) -> dict[Path, int]:
    """Where something is written → bytes: results of a chain lie beside each other till its end."""
    needed: dict[Path, int] = {}
    for part in parts:
        if part.folder is None or part.folder.parent == default_intermediates(target):
            needed[target] = needed.get(target, 0) + (
                0 if part.folder and part.folder.exists() else part.bytes_out + part.side_bytes
            )
        elif not part.folder.exists():
            needed[part.folder] = part.bytes_out + part.side_bytes
    return needed


def _remove_intermediates(planned: Plan, target: Path) -> None:
    """Delete the results of earlier documents, and their folder when nothing else is in it."""
    import shutil  # with its archive formats, which checking a recipe need not import

    folders = [part.folder for part in planned.chain if part.folder]
    for folder in folders:
        shutil.rmtree(folder)
    for parent in {folder.parent for folder in folders}:
        if parent == default_intermediates(target):
            shutil.rmtree(parent)  # with what killed runs of other recipes left there
        else:
            with contextlib.suppress(OSError):
                parent.rmdir()


def merge_state_dicts(
    recipe: Recipe | RecipeSource,
    models: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    options: Options | None = None,
    threads: int | None = None,
    device: str = "cpu",
    allow_nonfinite: bool = False,
) -> dict[str, torch.Tensor]:
    """Merge models that are in memory and return the result as a state dict.

    Args:
        recipe: as for :func:`merge`; its model names are the keys of ``models``.
        models: name → state dict. The tensors are not changed.
        configs: name → config.json as a mapping; needed only for ``slices``.
        options, threads, device, allow_nonfinite: as for :func:`merge`.

    Returns:
        Tensor name → tensor on the CPU, in the recipe's ``out_dtype`` or ``dtype``, else in the
        base's.

    Raises:
        RecipeError, CheckpointError, MergeError: as for :func:`merge`.
    """
    import torch

    from mergeloom.checkpoint import MemoryTensor
    from mergeloom.engine.run import Settings, run
    from mergeloom.engine.sink import Tensors
    from mergeloom.planning import plan_opened

    loaded = _loaded(recipe, options)
    if loaded.chain:
        raise RecipeError("a chain of documents cannot be merged in memory: merge them in turn")
    opened = {}
    for reference in loaded.models():
        if str(reference) not in models:
            near = nearest(str(reference), models)
            raise RecipeError(f"no state dict named {reference} was given. {near}".strip())
        if not models[str(reference)]:
            raise CheckpointError(f"the state dict of {reference} holds no tensors")
        tensors: dict[str, View] = {}
        for name, tensor in models[str(reference)].items():
            if not isinstance(tensor, torch.Tensor):
                kind = type(tensor).__name__
                raise CheckpointError(f"{reference}: {name} is a {kind}, not a torch tensor")
            tensors[name] = MemoryTensor(tensor)
        config = (configs or {}).get(str(reference))
        opened[reference] = Checkpoint(
            str(reference), Path(), _dequantized(str(reference), tensors, config), config
        )
    planned = plan_opened(loaded, opened, options)
    sink = Tensors(planned)
    run(planned, sink, Settings(threads, device=device, allow_nonfinite=allow_nonfinite))
    return sink.by_name


def _dequantized(
    label: str, tensors: Mapping[str, View], config: Mapping[str, Any] | None
) -> Mapping[str, View]:
    """A state dict's tensors, quantized ones as numbers."""
    from mergeloom.checkpoint.quantized import dequantized
    from mergeloom.checkpoint.report import Report

    problems = Problems()
    found = dequantized(tensors, config, label, Report(problems))
    problems.raise_errors(CheckpointError)
    return found or {}

"""Opening one input: find it, read its headers, say everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeloom.checkpoint.file_kinds import (
    FOREIGN,
    WEIGHT_SUFFIXES,
    is_weights,
    module_folders,
    side_files,
    walk,
)
from mergeloom.checkpoint.folder import choose_weights, read_json
from mergeloom.checkpoint.locate import locate
from mergeloom.checkpoint.quantized import dequantized
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.weights import in_natural_order, read_file, read_weights
from mergeloom.errors import Problems
from mergeloom.types import Checkpoint, ModelReference


def open_checkpoint(
    reference: ModelReference,
    problems: Problems,
    *,
    where: str = "",
    line: int | None = None,
    cache_dir: Path | None = None,
    needs_weights: bool = True,
) -> Checkpoint | None:
    """Find a model and read its headers, but none of its weights.

    Args:
        reference: a folder, a file or a hub id.
        problems: receives every mistake and warning; after a mistake None is returned.
        where: place of the reference in the recipe, for messages.
        line: line of that place.
        cache_dir: where the hub's files are kept; the hub's own default if None.
        needs_weights: a folder without weights is a mistake; else it may lend its other files.

    Returns:
        The checkpoint. Weight files of a hub model may still have to be fetched.
    """
    report = Report(problems, where, line)
    place = locate(reference, report)
    if place is None:
        return None
    if not isinstance(place, Path):
        from mergeloom.checkpoint.hub import open_hub

        return open_hub(reference, place, report, cache_dir)
    if place.is_dir():
        names = frozenset(walk(place)) if not needs_weights else frozenset()
        if not needs_weights and not any(map(is_weights, names)):
            beside = side_files(names, module_folders(place))
            return Checkpoint(str(reference), place, {}, side_files=beside)
        return open_folder(reference, place, report)
    return _open_file(reference, place, report)


def open_folder(
    reference: ModelReference, root: Path, report: Report, revision: str | None = None
) -> Checkpoint | None:
    """Open a folder on disk; ``revision`` marks the hub's cache."""
    shown = str(reference).rstrip("/") or "/"
    errors = len(report.problems.errors)
    try:
        names = frozenset(walk(root))
    except OSError as error:
        report.error(f"{shown} cannot be listed: {error.strerror or error}")
        return None
    config = read_config(reference, root, names, shown, report)
    weights = choose_weights(root, names, shown, report)
    if weights is None:
        return None
    bare = Checkpoint(
        label=str(reference),
        root=root,
        tensors={},
        config=config,
        side_files=side_files(names, module_folders(root)),
        revision=revision,
        is_local=revision is None,
    )
    if weights.files[0].endswith(".gguf"):
        made = with_gguf(bare, root / weights.files[0], reference, report)
        return made if len(report.problems.errors) == errors else None
    tensors = read_weights(
        weights, shown, report, lambda name, title, to: read_file(root / name, title, to)
    )
    if tensors is not None:
        tensors = dequantized(tensors, config, shown, report)
    if tensors is None or len(report.problems.errors) > errors:
        return None
    return replace(bare, tensors=tensors)


def with_gguf(
    checkpoint: Checkpoint, path: Path, reference: ModelReference, report: Report
) -> Checkpoint | None:
    """A checkpoint with the tensors of a GGUF file, and what else it lacks made from the file."""
    from mergeloom.checkpoint.gguf_file import open_gguf

    label = checkpoint.label
    shown = label if label.endswith(".gguf") else f"{label}/{path.name}"
    has_tokenizer = "tokenizer.json" in checkpoint.side_files
    model = open_gguf(path, shown, report, with_tokenizer=not has_tokenizer)
    if model is None:
        return None
    texts = {n: text for n, text in model.texts.items() if n not in checkpoint.side_files}
    return replace(
        checkpoint,
        tensors=model.tensors,
        config=checkpoint.config or overridden(model.config, reference),
        side_files=tuple(sorted([*checkpoint.side_files, *texts])),
        texts=texts,
    )


def read_config(
    reference: ModelReference, root: Path, names: frozenset[str], shown: str, report: Report
) -> Mapping[str, Any] | None:
    """``config.json`` with the architecture the recipe asked for, or None if there is none."""
    if "config.json" not in names:
        return None
    config = read_json(root / "config.json", f"{shown}/config.json", report)
    return None if config is None else overridden(config, reference)


def overridden(config: Mapping[str, Any], reference: ModelReference) -> Mapping[str, Any]:
    """A config.json with the architecture that the reference asks for, if it asks for one."""
    if reference.override_architecture is None:
        return config
    return {**config, "architectures": [reference.override_architecture]}


def _open_file(reference: ModelReference, path: Path, report: Report) -> Checkpoint | None:
    """Open one weight file, without a config and side files."""
    shown = str(reference)
    if not path.is_file():
        report.error(f"{shown} is neither a folder nor a file")
        return None
    if not path.name.lower().endswith((*WEIGHT_SUFFIXES, *FOREIGN)):
        report.error(
            f"{shown} is not a weight file ({', '.join(WEIGHT_SUFFIXES)})",
            f"Name the model's folder: {path.parent}",
        )
        return None
    if path.name.lower().endswith(".gguf"):
        bare = Checkpoint(label=shown, root=path.parent, tensors={})
        return with_gguf(bare, path, reference, report)
    tensors = read_file(path, shown, report)
    if tensors is None:
        return None
    if not tensors:
        report.error(f"{shown} holds no tensors")
        return None
    views = dequantized(in_natural_order(tensors), None, shown, report)
    return Checkpoint(label=shown, root=path.parent, tensors=views) if views else None

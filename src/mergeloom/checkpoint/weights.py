"""From weight files to named views."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mergeloom.checkpoint.file_kinds import FOREIGN
from mergeloom.checkpoint.folder import Weights
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.safetensors_header import read_header
from mergeloom.errors import listing
from mergeloom.types import View

V = TypeVar("V", bound=View)

ReadFile = Callable[[str, str, Report], Mapping[str, View] | None]
"""(name in the folder, how to call it, report) → the tensors of one weight file."""


def read_file(path: Path, shown: str, report: Report) -> Mapping[str, View] | None:
    """The tensors of a weight file on disk, by its kind."""
    suffix = path.suffix.lower()
    if suffix in FOREIGN:
        report.error(f"{shown} is a {FOREIGN[suffix]} file: convert it to safetensors first")
        return None
    if suffix == ".safetensors":
        return read_header(path, shown, report)
    from mergeloom.checkpoint.torch_pickle import read_pickle  # most runs need none of it

    return read_pickle(path, shown, report)


def read_weights(
    weights: Weights, shown: str, report: Report, read: ReadFile
) -> dict[str, View] | None:
    """The tensors of all files, in natural order.

    Where an index and the files disagree, the index decides which file's tensor is used; tensors
    the index does not name are used too; a tensor that no file holds is a mistake.
    """
    found: dict[str, View] = {}
    owner: dict[str, str] = {}
    twice: dict[tuple[str, str], list[str]] = {}
    complete = True
    for file in weights.files:
        tensors = read(file, f"{shown}/{file}", report)
        if tensors is None:
            complete = False
            continue
        for name, view in tensors.items():
            before = owner.get(name)
            named = weights.index.get(name)
            if before is not None and named not in (before, file):
                twice.setdefault((before, file), []).append(name)
            if before is None or named == file:
                found[name], owner[name] = view, file
    for (before, file), names in twice.items():
        count = f"{len(names)} tensors are" if len(names) > 1 else "a tensor is"
        report.error(f"{shown}: {count} in both {before} and {file}: {listing(names, 5)}")
    if twice or not complete:
        return None
    if not found:
        report.error(f"{shown} holds no tensors")
        return None
    return _agree(weights, found, owner, shown, report)


def _agree(
    weights: Weights, found: dict[str, View], owner: dict[str, str], shown: str, report: Report
) -> dict[str, View] | None:
    """Compare what was found with what the index says."""
    absent = [name for name in weights.index if name not in found]
    if absent:
        report.error(
            f"{shown}/{weights.index_name} names {len(absent)} tensors that are in no shard: "
            f"{listing(absent, 5)}",
            "Index and shards are of different models: download both again",
        )
        return None
    moved = [name for name, file in weights.index.items() if owner[name] != file]
    if moved:
        report.warn(
            f"{shown}/{weights.index_name} puts {len(moved)} tensors into other shards than they "
            f"are in: {listing(moved, 5)}"
        )
    return in_natural_order(found)


def in_natural_order(tensors: Mapping[str, V]) -> dict[str, V]:
    """Tensors by name, numbers inside names compared as numbers: layers.2 before layers.10."""
    return dict(sorted(tensors.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> tuple[object, ...]:
    parts = re.split(r"([0-9]+)", name)
    # Text and digits alternate, so like meets like. Digits compare by length, then as text.
    keys: list[object] = [
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else part
        for place, part in enumerate(parts)
    ]
    return (tuple(keys), name)


def relative(path: Path, root: Path) -> str:
    """A weight file's name in its folder."""
    return PurePosixPath(path.relative_to(root)).as_posix()

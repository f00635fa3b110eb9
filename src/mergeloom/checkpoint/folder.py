"""Which weight files of a folder are the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mergeloom.checkpoint.file_kinds import (
    FOREIGN,
    WEIGHT_SUFFIXES,
    is_adapter,
    is_training_state,
    is_weights,
)
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.safetensors_header import lfs_pointer
from mergeloom.errors import Problems, listing
from mergeloom.json_text import json_kind, parse_json

_SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
GGUF_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SHARD = re.compile(r"(?P<stem>.+)-\d{3,}-of-\d{3,}\.(?P<suffix>safetensors|bin)")
_AGAIN = "Download what is missing, or remove the index"


@dataclass(frozen=True)
class Weights:
    """The weight files of a model.

    Args:
        files: names relative to the folder, sorted.
        index: tensor → file as the index says, empty without an index.
        index_name: of the index file.
    """

    files: tuple[str, ...]
    index: Mapping[str, str] = field(default_factory=dict)
    index_name: str = ""


def choose_weights(root: Path, names: Set[str], shown: str, report: Report) -> Weights | None:
    """Decide which files are the model, or report why there is none.

    The order is: ``model.safetensors`` before its index, because transformers loads it first;
    then the diffusers name and any other index of safetensors; then ``pytorch_model.bin`` or its
    index; then the only weight file there is: safetensors before a pickle before GGUF.

    Args:
        root: where index files and ``adapter_config.json`` can be read.
        names: every file there is (on the hub or on disk), relative to ``root``.
        shown: how messages call the folder.
        report: receives the mistakes.
    """
    chosen = _usual(_SINGLE, root, names, shown, report)
    if chosen is None:
        indexes = _unusual_indexes(names)
        if len(indexes) > 1:
            report.error(
                f"{shown} has several sets of weights: {listing(indexes)}",
                "Keep one, or name a weight file",
            )
            return None
        pickle = ("pytorch_model.bin",)
        chosen = indexes[0] if indexes else _usual(pickle, root, names, shown, report)
    chosen = chosen or _only_file(root, names, shown, report)
    if not chosen:
        return None
    if chosen.endswith(".gguf"):
        return Weights(tuple(_parts(chosen, names)))
    return _indexed(root, names, chosen, shown, report) if _is_index(chosen) else Weights((chosen,))


def _is_index(name: str) -> bool:
    return name.endswith((".safetensors.index.json", ".bin.index.json"))


def _usual(
    singles: Sequence[str], root: Path, names: Set[str], shown: str, report: Report
) -> str | None:
    """The first of these files that is there, or its index."""
    for single in singles:
        if single in names:
            _warn_of_both(root, names, single, shown, report)
            return single
        if f"{single}.index.json" in names:
            return f"{single}.index.json"
    return None


def _unusual_indexes(names: Set[str]) -> list[str]:
    """The indexes of safetensors with other names; Mistral's ``consolidated`` only if alone."""
    found = sorted(n for n in names if "/" not in n and n.endswith(".safetensors.index.json"))
    return [n for n in found if not n.startswith("consolidated")] or found


def _warn_of_both(root: Path, names: Set[str], single: str, shown: str, report: Report) -> None:
    """A complete sharded set beside the single file: one of them is probably old."""
    index_name = f"{single}.index.json"
    if index_name not in names:
        return
    index = _weight_map(root, index_name, shown, Report(Problems()))
    shards = set(index.values()) if index else set()
    if shards and shards != {single} and shards <= names:
        report.warn(
            f"{shown} has both {single} and the shards of {index_name}: {single} is used, as "
            "transformers does",
            "Remove the older of the two",
        )


def _only_file(root: Path, names: Set[str], shown: str, report: Report) -> str | None:
    """The only weight file without an index, or None with the reason reported."""
    top = [n for n in sorted(names) if "/" not in n and not is_training_state(n)]
    found = [n for n in top if n.endswith(WEIGHT_SUFFIXES) and not is_adapter(n)]
    found = [n for n in found if not n.endswith(".gguf")] or _gguf_models(found)
    own = [n for n in found if not n.startswith("consolidated")]
    found = own or found
    safe = [n for n in found if n.endswith(".safetensors")]
    found = safe or found
    if len(found) == 1 and not _SHARD.fullmatch(found[0]):
        return found[0]
    if found:
        shards = [m for m in map(_SHARD.fullmatch, found) if m]
        if shards:
            stem, suffix = shards[0]["stem"], shards[0]["suffix"]
            report.error(
                f"{shown} has the shards {listing(found)} but not {stem}.{suffix}.index.json",
                "Download the index, which says where each tensor is",
            )
        else:
            report.error(
                f"{shown} has several weight files and no index: {listing(found)}",
                "Name the one to merge, for example "
                f"{(PurePosixPath(shown) / found[0]).as_posix()}",
            )
        return None
    _no_weights(root, names, top, shown, report)
    return None


def _gguf_models(found: list[str]) -> list[str]:
    """GGUF files that are models: not projectors of images, of a split one the first part."""
    parts = {n: part for n in found if (part := GGUF_PART.fullmatch(n))}
    return [
        n for n in found
        if not n.startswith("mmproj") and (n not in parts or int(parts[n]["number"]) == 1)
    ]  # fmt: skip


def _parts(first: str, names: Set[str]) -> list[str]:
    """All parts of a split GGUF model that are there, or the one file."""
    part = GGUF_PART.fullmatch(first)
    if not part:
        return [first]
    same = re.compile(re.escape(part["stem"]) + r"-\d{5}-of-" + part["count"] + r"\.gguf")
    return sorted(n for n in names if same.fullmatch(n))


def _no_weights(root: Path, names: Set[str], top: list[str], shown: str, report: Report) -> None:
    """Say what was found where weights were expected."""
    if "adapter_config.json" in names or any(map(is_adapter, top)):
        base = _adapter_base(root)
        report.error(
            f"{shown} is a LoRA adapter of {base or 'another model'}, which is not supported yet "
            "in this version",
            "Merge it into the model first (peft merge_and_unload)",
        )
        return
    if broken := _broken_links(root):
        report.error(
            f"{shown} has only links to weights that are not there: {listing(broken)}",
            "Copy the files themselves (cp -L), or download the model again",
        )
        return
    foreign = [n for n in top if PurePosixPath(n).suffix.lower() in FOREIGN]
    nested = sorted({n.rpartition("/")[0] for n in names if "/" in n and is_weights(n)})
    if foreign:
        report.error(
            f"{shown} has its weights only as {listing(foreign)}",
            f"{FOREIGN[PurePosixPath(foreign[0]).suffix.lower()]} is not read: convert it to "
            "safetensors with transformers",
        )
    elif nested and "model_index.json" in names:
        report.error(
            f"{shown} is a diffusers pipeline of several models: {listing(nested)}",
            f"Merge them one by one, for example {shown}/{nested[-1]}, and put the results into "
            "a copy of the pipeline",
        )
    elif nested:
        report.error(
            f"{shown} has no weights of its own, but its subfolders have: {listing(nested)}",
            "Name one of them",
        )
    elif names:
        report.error(f"{shown} has no weights. It has {listing(sorted(names))}")
    else:
        report.error(f"{shown} has no weights: it is empty")


def _broken_links(root: Path) -> list[str]:
    """Weights that a folder copied out of the hub's cache still points to."""
    try:
        found = sorted(path for path in root.iterdir() if is_weights(path.name))
    except OSError:
        return []  # the folder of a hub model, which is not on disk
    return [path.name for path in found if path.is_symlink() and not path.exists()]


def _adapter_base(root: Path) -> str:
    try:
        config = parse_json((root / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        return ""  # only makes the message less precise
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return base if isinstance(base, str) else ""


# --- the index ---


def _indexed(
    root: Path, names: Set[str], index_name: str, shown: str, report: Report
) -> Weights | None:
    index = _weight_map(root, index_name, shown, report)
    if index is None:
        return None
    shards = sorted(set(index.values()))
    outside = [shard for shard in shards if not _is_inside(shard)]
    if outside:
        report.error(
            f"{shown}/{index_name} names files that are not plainly inside of the folder: "
            f"{listing(json.dumps(s)[:200] for s in outside)}"
        )
        return None
    missing = [shard for shard in shards if shard not in names]
    if missing:
        count = f"{len(missing)} of {len(shards)} shards are"
        report.error(
            f"{shown}: {count} missing: {listing(missing, 40)}",
            f"{_AGAIN} {index_name}",
        )
        return None
    return Weights(tuple(shards), index, index_name)


def _weight_map(root: Path, name: str, shown: str, report: Report) -> dict[str, str] | None:
    document = read_json(root / name, f"{shown}/{name}", report)
    if document is None:
        return None
    index = document.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        report.error(f"{shown}/{name} has no weight_map from tensors to files")
        return None
    if not index:
        report.error(f"{shown}/{name} names no tensors")
        return None
    return index


def _is_inside(name: str) -> bool:
    """Whether a shard's name stays in its folder on every system."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and not windows.drive
        and ".." not in path.parts
        and "\\" not in name
        and name.isprintable()
        and path.as_posix() == name
    )


def read_json(path: Path, shown: str, report: Report) -> dict[str, Any] | None:
    """A JSON object from a file, or None with the reason reported."""
    try:
        size = path.stat().st_size
        if size > 256 * 2**20:
            report.error(f"{shown} is no JSON file for a model: it has {size:,} bytes")
            return None
        content = path.read_bytes()
        if lfs_pointer(content, size, shown, report):
            return None
        document = parse_json(content)
    except OSError as error:
        report.error(f"{shown} cannot be read: {error.strerror or error}")
        return None
    except ValueError as error:
        report.error(f"{shown} is not valid JSON: {error}")
        return None
    if not isinstance(document, dict):
        report.error(f"{shown} holds a JSON {json_kind(document)}, not an object")
        return None
    return document

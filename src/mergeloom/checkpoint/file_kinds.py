"""Which files of a model folder are weights, and which belong to it beside the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mergeloom.json_text import parse_json

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
"""Files that can be read. Everything but ``.safetensors`` and ``.gguf`` is a torch pickle."""

FOREIGN = {
    ".ggml": "GGML",
    ".h5": "Keras HDF5",
    ".keras": "Keras",
    ".msgpack": "Flax msgpack",
    ".onnx": "ONNX",
    ".npz": "numpy",
    ".tflite": "TensorFlow Lite",
    ".ot": "rust-bert",
}
"""Weights in a format that is refused by name."""

_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|keras|msgpack|onnx|onnx_data|npz|tflite|ot)"
    r"(\.|$)"
)
_TRAINING_STATE = (
    *("training_args.bin", "optimizer.*", "optimizer_*", "scheduler.*", "scaler.*"),
    *("rng_state*.pth", "random_states*", "trainer_state.json", "events.out.tfevents*"),
)
_NOT_OF_THE_RESULT = (
    *("readme.md", "license*", "adapter_config.json", "adapter_model.*"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),  # of other weights
)
_OTHER_EXPORTS = ("onnx", "openvino", "original", "coreml", "__pycache__", "runs")


def is_weights(name: str) -> bool:
    """Whether it is weights of any format, or an index of weights."""
    return bool(_WEIGHTS.search(PurePosixPath(name).name.lower()))


def is_training_state(name: str) -> bool:
    """Whether a trainer left it to continue from: never a model."""
    last = PurePosixPath(name).name
    return any(fnmatchcase(last, pattern) for pattern in _TRAINING_STATE)


def is_adapter(name: str) -> bool:
    """Whether it is the weights of a LoRA."""
    return PurePosixPath(name).name.startswith("adapter_model.")


def walk(root: Path) -> Iterator[str]:
    """Every file under ``root``, relative, with ``/``; no hidden folders, no linked folders.

    Of a folder without weights only two levels are listed: it may be a mistake such as ``/``, and
    the names are needed only for a message.
    """
    depth = 0 if any(map(is_weights, os.listdir(root))) else 2
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if depth and len(inside.parts) + 1 >= depth:
            folders.clear()
        for name in sorted(files):
            if os.path.isfile(os.path.join(folder, name)):  # not a broken link, nor a pipe
                yield (inside / name).as_posix()


def _is_skipped(folder: str) -> bool:
    return folder.startswith(".") or folder in _OTHER_EXPORTS or fnmatchcase(folder, "checkpoint-*")


def side_files(names: Iterable[str], modules: Iterable[str] = ()) -> tuple[str, ...]:
    """The files that belong to a model beside its weights, sorted.

    Subfolders with weights of their own (other exports, parts of a pipeline) are left out whole,
    but for the ``modules`` of a sentence-transformers model, which are kept with their weights.
    """
    every = [PurePosixPath(name) for name in names]
    keep = {PurePosixPath(module) for module in modules}
    foreign = {
        path.parents[-2]
        for path in every
        if len(path.parts) > 1 and is_weights(path.name) and keep.isdisjoint(path.parents)
    }
    found = []
    for path in every:
        if any(part.startswith(".") for part in path.parts):
            continue
        if any(map(_is_skipped, path.parts[:-1])):
            continue
        if keep.isdisjoint(path.parents) and not _is_side_file(path, foreign):
            continue
        found.append(path.as_posix())
    return tuple(sorted(found))


def _is_side_file(path: PurePosixPath, foreign: set[PurePosixPath]) -> bool:
    if is_weights(path.name) or is_training_state(path.name):
        return False
    if any(fnmatchcase(path.name.lower(), pattern) for pattern in _NOT_OF_THE_RESULT):
        return False
    return foreign.isdisjoint(path.parents)


def module_folders(root: Path) -> tuple[str, ...]:
    """The subfolders that a sentence-transformers ``modules.json`` names."""
    try:
        modules = parse_json((root / "modules.json").read_bytes())
    except (OSError, ValueError):
        return ()  # none, or not sentence-transformers' file: then it is a side file like others
    if not isinstance(modules, list):
        return ()
    paths = [m.get("path") for m in modules if isinstance(m, dict)]
    return tuple(p for p in paths if isinstance(p, str) and re.fullmatch(r"\w[\w.-]*", p))

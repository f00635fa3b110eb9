"""What the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mergeloom.checkpoint import open_checkpoint
from mergeloom.engine.scratch import Scratch
from mergeloom.errors import Problems
from mergeloom.types import Checkpoint, ModelReference, View, numel


def read(view: View, start: int = 0, stop: int | None = None) -> torch.Tensor:
    return view.read(start, numel(view.shape) if stop is None else stop, Scratch(), "key")


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: equal also where it has NaN."""
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()).reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def opened(path: Path | str, **more: object) -> tuple[Checkpoint | None, list[str], list[str]]:
    """A checkpoint with the errors and the warnings, the folder of the test cut off."""
    reference = path if isinstance(path, ModelReference) else ModelReference(str(path))
    problems = Problems()
    checkpoint = open_checkpoint(reference, problems, **more)  # type: ignore[arg-type]
    return checkpoint, list(map(str, problems.errors)), list(map(str, problems.warnings))


def good(path: Path | str, **more: object) -> Checkpoint:
    checkpoint, errors, warnings = opened(path, **more)
    assert checkpoint is not None
    assert (errors, warnings) == ([], [])
    return checkpoint


def refused(path: Path | str, **more: object) -> str:
    """The only error, from the file's name on."""
    checkpoint, errors, _ = opened(path, **more)
    assert checkpoint is None
    assert len(errors) == 1, errors
    parent = Path(str(path)).parent
    return errors[0].replace(f"{parent}/", "") if parent.name else errors[0]


def safetensors_bytes(entries: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file as the header says, right or wrong. Bytes are taken as they are."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data

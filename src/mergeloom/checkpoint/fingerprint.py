"""Recognising weights again by a sample of their content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mergeloom.checkpoint.open_files import read_into
from mergeloom.checkpoint.views import StoredTensor
from mergeloom.checkpoint.weights import relative
from mergeloom.errors import CheckpointError
from mergeloom.types import Checkpoint, View, nbytes

_SAMPLES, _SAMPLE = 64, 4096
_LONGEST_HEADER = 2**28


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of what the weight files are called, how long they are, and samples of their bytes.

    Per file: its name in the folder, its size, everything in front of the first tensor (the
    header, or the pickle), and 64 samples of 4 KiB, evenly spaced. Checkpoints
    that training made different get different hashes, wherever and whenever they were stored.
    A sample is no proof: a change of a few bytes between the samples goes unnoticed.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        CheckpointError: a weight file is not on disk or cannot be read.
    """
    digest = hashlib.sha256()
    first = _first_bytes(checkpoint)
    for path in sorted(first, key=lambda path: relative(path, checkpoint.root)):
        name = relative(path, checkpoint.root)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{len(name)}:{name}:{size}:".encode())
                header = file.read(min(first[path], _LONGEST_HEADER))
                digest.update(header)
                for place in _places(len(header), size):
                    file.seek(place)
                    digest.update(file.read(_SAMPLE))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _first_bytes(checkpoint: Checkpoint) -> dict[Path, int]:
    """Every weight file, and where the first of its tensors begins."""
    first: dict[Path, int] = {}
    for view in checkpoint.tensors.values():
        for stored in getattr(view, "parts", (view,)):
            for path in stored.files:
                offset = getattr(stored, "offset", 0)
                first[path] = min(first.get(path, offset), offset)
    return first


def _places(start: int, size: int) -> list[int]:
    """Where the samples of bytes [start, size) begin: all of it if there are few."""
    if size - start <= _SAMPLES * _SAMPLE:
        return list(range(start, size, _SAMPLE))
    return [start + n * (size - start - _SAMPLE) // (_SAMPLES - 1) for n in range(_SAMPLES)]


def alike(one: View, other: View) -> bool:
    """Whether two stored tensors are of one dtype and shape and equal wherever they are sampled.

    False for tensors that are not on disk yet, or not plain bytes of a file.
    """
    if not isinstance(one, StoredTensor) or not isinstance(other, StoredTensor):
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if not (one.path.is_file() and other.path.is_file()):
        return False
    size = nbytes(one.dtype, one.shape)
    a, b = bytearray(_SAMPLE), bytearray(_SAMPLE)
    for place in _places(0, size):
        length = min(_SAMPLE, size - place)
        read_into(one.path, one.offset + place, memoryview(a)[:length])
        read_into(other.path, other.offset + place, memoryview(b)[:length])
        if a[:length] != b[:length]:
            return False
    return True

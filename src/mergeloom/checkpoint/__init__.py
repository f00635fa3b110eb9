"""Models as they are stored: found, checked and described without loading a weight."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mergeloom.checkpoint.fingerprint import alike, fingerprint
from mergeloom.checkpoint.open import open_checkpoint, overridden
from mergeloom.checkpoint.open_files import close_files
from mergeloom.checkpoint.rearranged import rearrange
from mergeloom.checkpoint.safetensors_header import is_lfs_pointer
from mergeloom.checkpoint.views import MemoryTensor, RowsOf, StoredTensor, StridedTensor
from mergeloom.types import Checkpoint

__all__ = [
    "MemoryTensor",
    "RowsOf",
    "StoredTensor",
    "StridedTensor",
    "alike",
    "close_files",
    "fetch",
    "fingerprint",
    "is_lfs_pointer",
    "open_checkpoint",
    "overridden",
    "rearrange",
]


def fetch(checkpoint: Checkpoint, files: Iterable[Path]) -> None:
    """Download those weight files of a hub model that are not on disk yet.

    Args:
        checkpoint: as opened.
        files: the files that will be read; those not in ``checkpoint.fetch`` are skipped.

    Raises:
        CheckpointError: a file cannot be downloaded.
    """
    if checkpoint.fetch:
        from mergeloom.checkpoint import hub

        hub.fetch(checkpoint, files)

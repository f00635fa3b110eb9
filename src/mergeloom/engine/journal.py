"""Which tensors of a partial output are finished, so that a killed run can go on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """One finished output tensor: its job number, non-finite elements, and what was noted."""

    job: int
    nonfinite: int = 0
    notes: tuple[str, ...] = ()


class Journal:
    """An append-only file of JSON lines: first the run's digest, then a line for each tensor.

    A line is appended with one write after the tensor's last block was written, so a process
    that is killed leaves at most one broken last line, which is ignored.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._lock = threading.Lock()
        self.finished = tuple(_read(path, digest))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if not self.belongs(path, digest):
            flags |= os.O_TRUNC
        self._fd = os.open(path, flags, 0o644)
        if flags & os.O_TRUNC:
            self._append({"plan": digest})
        else:
            self._append({})  # ends a line that a kill may have cut

    @staticmethod
    def belongs(path: Path, digest: str) -> bool:
        """Whether there is a journal at ``path`` that was begun under this digest."""
        lines = _lines(path)
        return bool(lines) and lines[0].get("plan") == digest

    def add(self, tensor: Finished) -> None:
        """Record a tensor whose every block has been written."""
        line: dict[str, object] = {"job": tensor.job}
        if tensor.nonfinite:
            line["nonfinite"] = tensor.nonfinite
        if tensor.notes:
            line["notes"] = list(tensor.notes)
        self._append(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, line: object) -> None:
        with self._lock:
            os.write(self._fd, b"\n" + json.dumps(line).encode() + b"\n")


def _lines(path: Path) -> Sequence[dict[str, object]]:
    if not path.exists():
        return []
    found = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text) if text.strip() else None
        except ValueError:
            continue  # cut by a kill in the middle of the write
        if isinstance(line, dict) and line:
            found.append(line)
    return found


def _read(path: Path, digest: str) -> list[Finished]:
    if not Journal.belongs(path, digest):
        return []
    return [
        Finished(int(str(line["job"])), int(str(line.get("nonfinite", 0))), _notes(line))
        for line in _lines(path)
        if "job" in line
    ]


def _notes(line: dict[str, object]) -> tuple[str, ...]:
    notes = line.get("notes", [])
    return tuple(str(n) for n in notes) if isinstance(notes, list) else ()

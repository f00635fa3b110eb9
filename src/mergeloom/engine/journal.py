"""Which tensors of a partial output are finished, so that a killed run can go on."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeloom.engine.kernel import unwritable
from mergeloom.errors import OutputError


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

    What a killed process has written is the system's to bring to the disk. When the system itself
    went down, or failed to do so, only those tensors count that a later line says were flushed.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._lock = threading.Lock()
        self._unflushed: list[int] = []
        system = _system()
        self.finished = tuple(_read(path, digest, system))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if not self.belongs(path, digest):
            flags |= os.O_TRUNC
        self._fd = os.open(path, flags, 0o644)
        if flags & os.O_TRUNC:
            self._append({"plan": digest})
        self._append({"system": system})

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
        with self._lock:
            self._unflushed.append(tensor.job)

    def flush(self, files: Sequence[int]) -> None:
        """Bring all that was written into open files to the disk, and record what is safe by that.

        Raises OutputError. The system tells of what it could not write but once, and forgets it:
        no tensor counts as finished then whose bytes may be among that.
        """
        with self._lock:
            safe, self._unflushed = self._unflushed, []
        try:
            for file in files:
                os.fsync(file)
        except OSError as error:
            try:
                self._append({"system": None})
            except OutputError:  # there is room to begin again
                os.ftruncate(self._fd, 0)
            raise unwritable(error.errno or 0) from error
        if safe:
            self._append({"flushed": safe})

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, line: object) -> None:
        with self._lock:
            try:
                os.write(self._fd, b"\n" + json.dumps(line).encode() + b"\n")
            except OSError as error:
                raise unwritable(error.errno or 0) from error


def _system() -> str:
    """The same for as long as what a process has written cannot be lost with the system.

    A new one each time where it does not say since when it runs.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


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


def _read(path: Path, digest: str, now: str) -> list[Finished]:
    if not Journal.belongs(path, digest):
        return []
    found: dict[int, Finished] = {}
    flushed: set[int] = set()
    system: object = None
    this_run: dict[str, object] = {"system": now}
    for line in (*_lines(path), this_run):
        if "job" in line:
            job = int(str(line["job"]))
            found[job] = Finished(job, int(str(line.get("nonfinite", 0))), _notes(line))
        elif "flushed" in line:
            flushed.update(_numbers(line))
        elif "system" in line and line["system"] != system:
            system = line["system"]
            found = {job: tensor for job, tensor in found.items() if job in flushed}
    return [*found.values()]


def _numbers(line: dict[str, object]) -> list[int]:
    numbers = line["flushed"]
    return [int(str(n)) for n in numbers] if isinstance(numbers, list) else []


def _notes(line: dict[str, object]) -> tuple[str, ...]:
    notes = line.get("notes", [])
    return tuple(str(n) for n in notes) if isinstance(notes, list) else ()

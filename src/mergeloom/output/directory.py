"""A directory that is complete or not there: built beside the target, then moved into place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mergeloom.errors import OutputError, Problem

JOURNAL = "journal.jsonl"
RESERVE = 16 << 20
"""Bytes kept free beside the weights for config, tokenizer and the file system's own needs."""


def partial_folder(out: Path) -> Path:
    """Where the output is built: a hidden folder beside the target."""
    return out.parent / f".{out.name}.partial"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that is a file, holds something, or cannot be written.

    Raises OutputError.
    """
    if out.is_file():
        raise OutputError(Problem(str(out), "is a file", "Give a folder for the merged model."))
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(
            Problem(
                str(out),
                "is not empty",
                "Choose another folder, or use --overwrite to replace it when the merge is done.",
            )
        )
    parent = _existing_parent(out)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(Problem(str(parent), "cannot be written to", "Check its permissions."))


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output folder that is, or holds, the folder of an input: it would be replaced.

    Raises OutputError, also when overwriting was asked for.
    """
    target = out.resolve()
    for folder in inputs:
        source = folder.resolve()
        if target == source or target in source.parents:
            raise OutputError(
                Problem(str(out), f"holds the input {folder}", "Choose another folder.")
            )


def check_space(out: Path, needed: int) -> None:
    """Refuse when the disk has no room for ``needed`` bytes more.

    What a partial output of an earlier run already occupies is not needed again.
    """
    partial = partial_folder(out)
    held = sum(f.stat().st_blocks * 512 for f in partial.glob("*")) if partial.is_dir() else 0
    free = shutil.disk_usage(_existing_parent(out)).free
    if needed + RESERVE - held > free:
        raise OutputError(
            Problem(
                str(out),
                f"the output needs {_gb(needed + RESERVE - held)}, the disk has {_gb(free)} free",
                "Free some space or choose another disk.",
            )
        )


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """The partial folder, locked against a second run; it stays when the block fails.

    The lock belongs to the process: it ends with it, however it ends.
    """
    partial = partial_folder(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial.with_suffix(".lock"), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            Problem(str(out), "another merge is writing it right now", "Wait for it to end.")
        ) from error
    except OSError as error:
        raise OutputError(Problem(str(partial), f"cannot be made: {error.strerror}")) from error
    try:
        yield partial
    finally:
        # Removed while it is still held, so that no other run can hold the same name meanwhile.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def clear(partial: Path) -> None:
    """Empty a partial folder that belongs to another plan."""
    for entry in partial.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def move_into_place(partial: Path, out: Path) -> None:
    """Make the finished folder the target; what was there before is removed last."""
    (partial / JOURNAL).unlink()
    old = out.parent / f".{out.name}.old"
    try:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        raise OutputError(
            Problem(str(out), f"cannot be put in place: {error.strerror}", f"It is in {partial}.")
        ) from error
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(old)


def _existing_parent(path: Path) -> Path:
    """The nearest folder that exists, the path itself included."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

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

JOURNAL = ".journal.jsonl"  # hidden, as no side file is: it cannot be taken for one
RESERVE = 16 << 20
"""Bytes kept free beside the weights for config, tokenizer and the file system's own needs."""
_OUR_HEADER = b'{"__metadata__":{"format":"pt","mergeloom":'


def partial_folder(out: Path) -> Path:
    """Where the output is built: a hidden folder beside the target (beside what a link means)."""
    real = out.resolve()
    return real.parent / f".{real.name}.partial"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that is a file, holds something, or cannot be made or replaced.

    Raises OutputError.
    """
    try:
        problem = _obstacle(out, overwrite)
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem(str(out), f"cannot be a folder: {reason}", "Choose another name.")
    if problem:
        raise OutputError(problem)


def _obstacle(out: Path, overwrite: bool) -> Problem | None:
    """What is in the way of a target, or None."""
    real = out.resolve()
    if real.exists() and not real.is_dir():
        what = "is a file" if real.is_file() else "is not a folder"
        return Problem(str(out), what, "Give a folder for the merged model.")
    if real.is_dir():
        if any(real.iterdir()) and not overwrite:
            hint = "Choose another folder, or use --overwrite to replace it when the merge is done."
            return Problem(str(out), "is not empty", hint)
        if os.path.ismount(real):
            what = "is where a disk is mounted, so the finished folder cannot take its place"
            return Problem(str(out), what, f"Name a folder inside it: {out / 'merged'}")
        if Path.cwd().is_relative_to(real):
            what = "would be replaced by the finished folder, and you are in it"
            return Problem(str(out), what, f"Name a new folder: {out / 'merged'}")
    parent = _existing(real.parent)
    if not parent.is_dir():
        return Problem(str(out), f"{parent} is a file, so no folder can be made in it")
    if not os.access(parent, os.W_OK | os.X_OK):
        return Problem(str(out), f"{parent} cannot be written to", "Check its permissions.")
    return None


def check_apart(out: Path, needed: Iterable[tuple[str, Path]]) -> None:
    """Refuse an output folder that is, or holds, what the merge reads: it would be replaced.

    Args:
        out: the target.
        needed: what each thing is called, and where it is.

    Raises OutputError, also when overwriting was asked for.
    """
    target = out.resolve()
    # A link inside the target counts as held, wherever it leads: it would be gone afterwards.
    held = [
        name
        for name, path in needed
        if path.resolve().is_relative_to(target) or path.absolute().is_relative_to(out.absolute())
    ]
    if held:
        names = ", ".join(dict.fromkeys(held))
        problem = f"would be replaced, and it holds {names}, which the merge reads"
        raise OutputError(Problem(str(out), problem, "Choose another folder."))


def is_earlier_merge(out: Path) -> bool:
    """Whether a folder is a result of this program, as the metadata of its weights says."""
    for path in sorted(out.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # Our own headers begin with the metadata, so that their start is enough.
            return file.read(min(length, 64)).startswith(_OUR_HEADER)
    return False


def check_space(out: Path, needed: int) -> None:
    """Refuse when the disk has no room for ``needed`` bytes more.

    What a partial output of an earlier run already occupies is not needed again.
    """
    partial = partial_folder(out)
    held = sum(_occupied(f) for f in partial.glob("*")) if partial.is_dir() else 0
    free = shutil.disk_usage(_existing(partial)).free
    missing = needed + RESERVE - held - free
    if missing > 0:
        raise OutputError(
            Problem(
                str(out),
                f"the output needs {_size(missing + free)}, {_size(missing)} more than the disk "
                "has free",
                "Free some space or choose another disk.",
            )
        )


def _occupied(path: Path) -> int:
    """Bytes of the disk that a file takes, which are fewer than its size if it has holes."""
    status = path.stat()
    # Windows has no count of blocks, and allots a file whole.
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size


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
    """Make the finished folder the target; what was there before is removed last.

    Everything is on the disk before the folder gets its name: a power cut must not leave a model
    that looks complete and is full of zeros.
    """
    real = out.resolve()
    old = real.parent / f".{real.name}.old"
    try:
        for path in partial.rglob("*"):
            if path.is_file():
                _to_disk(path)
        (partial / JOURNAL).unlink()
        if real.exists():
            shutil.rmtree(old, ignore_errors=True)
            real.rename(old)
        try:
            partial.rename(real)
        except OSError:
            if old.exists():
                old.rename(real)
            raise
    except OSError as error:
        raise OutputError(
            Problem(str(out), f"cannot be put in place: {error.strerror}", f"It is in {partial}.")
        ) from error
    # The merge is finished: what cannot be removed of the old folder is no failure of it.
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing(path: Path) -> Path:
    """The path itself if it exists, else the nearest folder above it that does."""
    while not path.exists():
        path = path.parent
    return path


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"

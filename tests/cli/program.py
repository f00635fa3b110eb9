"""Running the program in this process, as the scripts do, and looking at what it left behind."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from mergeloom.cli.errors import run_command
from mergeloom.cli.main import mergeloom


@dataclass(frozen=True)
class Run:
    """Exit code and the two streams of one run."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was said on stderr, a line each."""
        return self.err.splitlines()


def run(*arguments: object, command: click.Command = mergeloom) -> Run:
    """Everything the program does but starting Python: parsing, working, exit code."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(command, [str(a) for a in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return Run(code, out.getvalue(), err.getvalue())


def everything(root: Path) -> dict[str, tuple[int, int] | None]:
    """Every file and folder below ``root``, hidden ones too, with size and time."""
    return dict(_walk(root, root))


def _walk(root: Path, folder: Path) -> Iterator[tuple[str, tuple[int, int] | None]]:
    for entry in sorted(folder.iterdir()):
        name = str(entry.relative_to(root))
        if entry.is_dir() and not entry.is_symlink():
            yield name, None
            yield from _walk(root, entry)
        else:
            status = entry.lstat()
            yield name, (status.st_size, status.st_mtime_ns)


def merge(recipe: str | bytes | None, *arguments: object, out: object = "out") -> Run:
    """``mergeloom merge r.yml out`` in the current folder; without a recipe, none is written."""
    if recipe is not None:
        Path("r.yml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
    return run("merge", "r.yml", out, *arguments)


def refused(recipe: str | bytes | None, *arguments: object, out: object = "out") -> list[str]:
    """The mistakes that a merge is refused for, after everything else a refusal must be.

    That is: exit code 2, a line for each mistake, no traceback, nothing on stdout, and not a file
    or folder made or changed, wherever a test may write. The current folder is called HERE.
    """
    if recipe is not None:
        merge_file = Path("r.yml")
        merge_file.write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
    before = everything(Path.cwd().parent)
    done = run("merge", "r.yml", out, *arguments)
    assert everything(Path.cwd().parent) == before
    assert (done.code, done.out) == (2, "")
    return mistakes(done)


def mistakes(done: Run) -> list[str]:
    """The errors of a run, without the word; warnings are left as they are."""
    assert "Traceback" not in done.err
    assert all(line.startswith(("error: ", "warning: ")) for line in done.lines), done.err
    here = str(Path.cwd())
    return [line.removeprefix("error: ").replace(here, "HERE") for line in done.lines]

"""A user's mistake is a message and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import click

from mergeloom.errors import MergeloomError, Problem

INTERRUPTED = 130
GARBAGE_AFTER = 100_000
"""New objects after which garbage is looked for; Python's own number is 700."""


def tell(problems: Iterable[Problem], kind: str) -> None:
    """Print problems to stderr, a line each."""
    for problem in problems:
        click.echo(f"{click.style(kind, fg='yellow' if kind == 'warning' else 'red')}: {problem}",
                   err=True)  # fmt: skip


def run_program(command: click.Command) -> None:
    """Run a click command as a process of its own and end the process at once.

    Taking torch down again module by module takes half as long as importing it, for nothing:
    everything was written and closed before. Modules and plans also stay until then, so that
    looking through them for garbage as often as Python does is a tenth of a short run's time.
    """
    gc.set_threshold(GARBAGE_AFTER)
    try:
        run_command(command)
    except SystemExit as leaving:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else 1)


def run_command(command: click.Command, arguments: list[str] | None = None) -> None:
    """Run a click command as a program and exit: 0, 2 for mistakes, 130 when interrupted."""
    sys.exit(_exit_code(lambda: command.main(arguments, standalone_mode=False)))


def _problem(error: click.ClickException) -> Problem:
    """click's message as one of ours: the option, what is wrong with it, where to look."""
    context = getattr(error, "ctx", None)
    hint = f"See {context.command_path} --help." if context else ""
    message = error.message
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        return Problem(error.param.opts[-1] if error.param else "", message.rstrip("."), hint)
    message = error.format_message()
    message = message[:1].lower() + message[1:].rstrip(".")
    if message.endswith("?"):  # click's own guess
        return Problem("", f"{message} {hint}")
    return Problem("", message, hint)


def _exit_code(call: Callable[[], Any]) -> int:
    try:
        code = call()
    except MergeloomError as error:
        tell(error.problems, "error")
        return 2
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # not a mistake told, but the whole help
        return error.exit_code
    except click.ClickException as error:
        tell([_problem(error)], "error")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped; run the same command again to continue where it stopped", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody left to tell.
        sys.stdout = None
        return 1
    except Exception as error:  # noqa: BLE001 - a defect of ours, told as one
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = str(error.filename or "")  # a write does not know its file
            tell([Problem(where, "no space is left where the output goes")], "error")
            return 2
        traceback.print_exc()
        click.echo("this is a defect of mergeloom: please report it with the lines above", err=True)
        return 1
    return code if isinstance(code, int) else 0

"""The one family of errors, and the list that lets all mistakes be told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake or one warning, in the words a user reads.

    Args:
        where: the place, as a recipe path (``models[0].parameters.weight``) or a file.
        message: what was found and what was wanted.
        hint: the next step, a full sentence or empty.
        line: 1-based line of the recipe, when the place is in one.
    """

    where: str
    message: str
    hint: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = self.where
        if self.line is not None:
            place = f"{place} (line {self.line})" if place else f"line {self.line}"
        text = f"{place}: {self.message}" if place else self.message
        return f"{text}. {self.hint}" if self.hint else text


class MergeloomError(Exception):
    """Base of every error a user can cause. ``problems`` holds each mistake."""

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class RecipeError(MergeloomError):
    """The recipe says something that cannot be done or cannot be understood."""


class CheckpointError(MergeloomError):
    """An input is missing, damaged, of the wrong kind, or does not fit the others."""


class MergeError(MergeloomError):
    """A tensor could not be computed."""


class OutputError(MergeloomError):
    """The output cannot be written where it was asked for."""


class Problems:
    """Collects mistakes and warnings so that a user sees all of them in one run."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, where: str, message: str, hint: str = "", line: int | None = None) -> None:
        """Add a mistake, once."""
        problem = Problem(where, message, hint, line)
        if problem not in self.errors:
            self.errors.append(problem)

    def warn(self, where: str, message: str, hint: str = "", line: int | None = None) -> None:
        """Add a warning, once."""
        problem = Problem(where, message, hint, line)
        if problem not in self.warnings:
            self.warnings.append(problem)

    def raise_errors(self, kind: type[MergeloomError]) -> None:
        """Raise ``kind`` with every mistake collected so far, if there is one."""
        if self.errors:
            raise kind(self.errors)


def listing(names: Iterable[str], limit: int = 8) -> str:
    """``a, b, c and 5 more``."""
    every = list(names)
    text = ", ".join(every[:limit])
    return f"{text} and {len(every) - limit} more" if len(every) > limit else text


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """``a, b, c, ...``, for messages that say how many there are."""
    every = list(names)
    return ", ".join(every[:limit]) + (", ..." if len(every) > limit else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean X?`` for the nearest known word, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""

"""Where the mistakes of one model go, and how its files are called in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergeloom.errors import Problems


@dataclass(frozen=True)
class Report:
    """Collects the mistakes of one model under its place in the recipe.

    Args:
        problems: the list shared by the whole run.
        where: place in the recipe, may be empty.
        line: of that place.
    """

    problems: Problems
    where: str = ""
    line: int | None = None

    def error(self, message: str, hint: str = "") -> None:
        """Add a mistake."""
        self.problems.error(self.where, message, hint, self.line)

    def warn(self, message: str, hint: str = "") -> None:
        """Add a warning."""
        self.problems.warn(self.where, message, hint, self.line)


def listing(names: Iterable[str], limit: int = 8) -> str:
    """``a, b, c and 5 more``."""
    every = list(names)
    text = ", ".join(every[:limit])
    return f"{text} and {len(every) - limit} more" if len(every) > limit else text

"""Where the mistakes of one model go."""

from __future__ import annotations

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

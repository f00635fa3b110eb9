"""PyYAML's errors in one sentence: the place, what is wrong, and its usual cause."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from mergeloom.errors import Problem, nearest

# What PyYAML says → what is usually wrong. The first that fits is used.
_CAUSES = [
    ("found character '\\t'", "a tab stands where YAML wants spaces"),
    ("found unknown escape character", "a backslash in double quotes starts an escape"),
    ("expected escape sequence", "a backslash in double quotes starts an escape"),
    ("expected alphabetic or numeric character", "* and & name anchors and aliases"),
    ("mapping values are not allowed", "a ':' stands where no key can be"),
    ("could not find expected ':'", "a key has no ':' after it"),
    ("expected <block end>", "the indentation does not line up with the lines above"),
    ("expected ',' or ']'", "a list opened with '[' is not closed"),
    ("expected ',' or '}'", "a mapping opened with '{' is not closed"),
    ("but found '<stream end>'", "the file ends inside a list or mapping"),
    ("expected the node content", "a value is missing"),
    ("unexpected end of stream", "a quote that was opened is not closed"),
    ("undefined alias", "an alias has no anchor"),
    ("duplicate anchor", "an anchor is defined twice"),
    ("that cannot start any token", "a value begins with a character that YAML reserves"),
]
_ADVICE = {
    "a tab stands where YAML wants spaces": "Indent with spaces.",
    "a backslash in double quotes starts an escape": (
        "Write Windows paths without quotes, in single quotes, or with forward slashes."
    ),
    "* and & name anchors and aliases": 'Put the value in quotes: filter: "*".',
    "a ':' stands where no key can be": (
        "Check the indentation of this line and the one above, or put the value in quotes."
    ),
    "the file ends inside a list or mapping": "Close it with ']' or '}'.",
    "a key has no ':' after it": "Write key: value, with a space after the colon.",
    "the indentation does not line up with the lines above": (
        "Give the keys of one mapping the same number of spaces."
    ),
    "an anchor is defined twice": "Give one of them another name.",
    "a value begins with a character that YAML reserves": "Put the value in quotes.",
}


def syntax_problem(error: yaml.YAMLError, text: str, anchors: Sequence[str]) -> Problem:
    """One sentence for a syntax error, with its line and column (both from 1)."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return _unreadable(error, text)
    mark = error.problem_mark or error.context_mark
    said = error.problem or error.context or "broken"
    if "duplicate anchor" in (error.context or ""):
        said = "duplicate anchor"
    line = mark.line + 1 if mark else None
    column = mark.column + 1 if mark else 1
    cause = next((ours for theirs, ours in _CAUSES if theirs in said), said)
    hint = _ADVICE.get(cause, "")
    if mark and "\t" in _indent_of(text, mark.line) and not hint.startswith("Write Windows"):
        cause, hint = "a tab stands where YAML wants spaces", "Indent with spaces."
    if cause == "an alias has no anchor":
        name = said.partition("'")[2].partition("'")[0]
        cause, hint = f"the alias *{name} has no anchor &{name} before it", nearest(name, anchors)
        hint = hint.replace("did", "Did", 1)
        if name in anchors:
            cause, hint = f"the anchor &{name} is of an earlier document", "Write it in each one."
    elif "is not closed" in cause and error.context_mark:
        opened = error.context_mark.line + 1
        hint = f"It was opened on line {opened}."
    return Problem("", f"not valid YAML at column {column}: {cause}", hint, line)


def _indent_of(text: str, line: int) -> str:
    lines = text.splitlines()
    row = lines[line] if line < len(lines) else ""
    return row[: len(row) - len(row.lstrip())]


def _unreadable(error: yaml.YAMLError, text: str) -> Problem:
    """A character that cannot stand in YAML text at all, which usually means a binary file."""
    place = getattr(error, "position", None)
    code = getattr(error, "character", "")
    code = ord(code) if isinstance(code, str) and code else code
    line = text.count("\n", 0, place) + 1 if isinstance(place, int) else None
    name = f"U+{code:04X}" if isinstance(code, int) else "a control character"
    return Problem("", f"not YAML text: it holds the character {name}", "Is it a recipe?", line)

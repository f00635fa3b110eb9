"""How values and names are said in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


def nearest_word(word: str, known: Iterable[object]) -> str:
    """``did you mean X?``, blind to case, or an empty text."""
    found = nearest_match(word, known)
    return "" if found is None else f"did you mean {found}?"


def nearest_match(word: str, known: Iterable[object]) -> str | None:
    """The nearest of the known words, blind to case, or None."""
    names = {str(name).lower(): str(name) for name in known}
    if word.lower() in names:
        return names[word.lower()]
    swapped = [name for name in names if sorted(name) == sorted(word.lower())]
    if swapped:
        return names[swapped[0]]
    found = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    if found:
        return names[found[0]]
    longer = [name for name in names if len(word) > 2 and name.startswith(word.lower())]
    return names[longer[0]] if len(longer) == 1 else None


def with_guess(message: str, word: str, known: Iterable[object]) -> str:
    """The message, followed by ``, did you mean X?`` where a known word is near."""
    near = nearest_word(word, known)
    return f"{message}, {near}" if near else message


def kind_of(value: object) -> str:
    """What a value is, for a reader of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence):
        return "a list"
    return f"a {type(value).__name__}"


def shown(value: object) -> str:
    """A value as it is quoted in a message: short, booleans as YAML writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"

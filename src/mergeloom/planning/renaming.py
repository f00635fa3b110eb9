"""``rename:`` of a recipe: other names for a model's tensors."""

from __future__ import annotations

import re
from dataclasses import replace

from mergeloom.errors import Problems, nearest
from mergeloom.types import Checkpoint, ModelReference, Recipe, View


def renamed(
    checkpoint: Checkpoint, reference: ModelReference, recipe: Recipe, problems: Problems
) -> Checkpoint:
    """The checkpoint with the names that the recipe gives to its tensors.

    For every tensor the first rule that fits it counts. A rule that fits none is a mistake, and so
    are two tensors with one name.
    """
    where, rules = recipe.rename_of(reference)
    if not rules:
        return checkpoint
    tensors: dict[str, View] = {}
    origin: dict[str, str] = {}
    idle = dict.fromkeys(old for old, _ in rules)
    for name, view in checkpoint.tensors.items():
        new = name
        for old, replacement in rules:
            try:
                made = _applied(name, old, replacement)
            except (re.error, IndexError) as error:
                problems.error(f"{where}.{old}", f"{replacement!r} does not fit {old!r}: {error}",
                               line=recipe.line(where))  # fmt: skip
                return checkpoint
            if made is not None:
                idle.pop(old, None)
                new = made
                break
        if not new or new in tensors:
            other = f"{origin[new]} and {name} are both" if new else f"{name} is"
            problems.error(where, f"{other} called {new!r} then", line=recipe.line(where))
            return checkpoint
        tensors[new], origin[new] = view, name
    for old in idle:
        heads = {".".join(n.split(".")[:k]) + "." for n in checkpoint.tensors for k in (1, 2, 3)}
        near = nearest(old, sorted(heads))
        first = next(iter(checkpoint.tensors))
        problems.error(
            f"{where}.{old}",
            f"no tensor of {checkpoint.label} ({first}, ...) fits {old!r}"
            + (f"; {near}" if near else ""),
            line=recipe.line(where),
        )
    return replace(checkpoint, tensors=tensors)


def _applied(name: str, old: str, new: str) -> str | None:
    """The new name by one rule: the beginning replaced, or what ``re:`` finds. None if idle."""
    if old.startswith("re:"):
        made, count = re.subn(old.removeprefix("re:"), new, name)
        return made if count else None
    return new + name[len(old) :] if name.startswith(old) else None

"""The documents of one file: which uses which, and in what order they run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergeloom.errors import Problem, Problems, RecipeError
from mergeloom.recipe.words import nearest_word
from mergeloom.types import ModelReference, Recipe


def arrange(recipes: Sequence[Recipe], problems: Problems) -> Recipe:
    """The final document of a file, with the documents it needs as its ``chain``.

    The unnamed document is the final one, or else the last of the file. A document is used when
    the path of a model reference is its name; other texts that happen to be equal do not count.

    Raises:
        RecipeError: for a second unnamed document, a name used twice, or documents that need
            each other in a circle.
    """
    if len(recipes) == 1:
        return recipes[0]
    mistakes = Problems()
    by_name: dict[str, Recipe] = {}
    unnamed: list[Recipe] = []
    for recipe in recipes:
        if recipe.name is None:
            unnamed.append(recipe)
        elif recipe.name in by_name:
            message = f"two documents of this file are called {recipe.name!r}"
            mistakes.error("name", message, line=recipe.line("name"))
        else:
            by_name[recipe.name] = recipe
    for recipe in unnamed[1:]:
        message = "only one document of a file can be without a name"
        line = recipe.line("merge_method")
        mistakes.error("", message, "Give this one a name: key.", line)
    mistakes.raise_errors(RecipeError)
    final = unnamed[0] if unnamed else recipes[-1]
    ordered: list[Recipe] = []
    for recipe in recipes:
        # Every document is walked, so that a circle is found even where nothing uses it.
        _visit(recipe, by_name, ordered, [])
    needed: list[Recipe] = []
    _visit(final, by_name, needed, [])
    for recipe in ordered:
        if all(recipe is not one for one in needed):
            message = f"nothing uses document {recipe.name!r}; it is not computed"
            problems.warn("name", message, line=recipe.line("name"))
    return replace(final, chain=tuple(needed[:-1]))


def refuse_misspelt_sources(recipes: Sequence[Recipe], problems: Problems) -> None:
    """Report a tokenizer source that is probably a misspelt ``union`` or ``base``.

    It would otherwise be looked up on the hub, whose answer mentions neither word.
    """
    names = {recipe.name for recipe in recipes}
    for recipe in recipes:
        settings = recipe.tokenizer
        if settings is None or not isinstance(settings.source, ModelReference):
            continue
        word = str(settings.source)
        near = nearest_word(word, ("union", "base")) if word.isalpha() else ""
        if near and word not in names and not os.path.exists(word):
            where = "tokenizer.source" if settings.where == "tokenizer" else settings.where
            message = f"{word!r} is neither union nor base, and no model here, {near}"
            problems.error(where, message, line=recipe.line(where))


def _visit(
    recipe: Recipe, by_name: Mapping[str, Recipe], done: list[Recipe], path: list[Recipe]
) -> None:
    """Append a document to ``done`` after everything it needs."""
    if any(recipe is one for one in done):
        return
    if any(recipe is one for one in path):
        start = next(i for i, one in enumerate(path) if one is recipe)
        names = [str(one.name) for one in path[start:]] + [str(recipe.name)]
        message = f"the documents need each other in a circle: {' → '.join(names)}"
        raise RecipeError(Problem("name", message, line=recipe.line("name")))
    for reference in (*recipe.models(), *recipe.lenders()):
        if reference.path in by_name and reference.path != recipe.name:
            _visit(by_name[reference.path], by_name, done, [*path, recipe])
    done.append(recipe)

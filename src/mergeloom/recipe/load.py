"""Recipe files, texts and mappings to ``Recipe``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergeloom.errors import Problem, Problems, RecipeError
from mergeloom.recipe.chain import arrange, refuse_misspelt_sources
from mergeloom.recipe.document import read_document
from mergeloom.recipe.parameters import MethodWords
from mergeloom.recipe.words import nearest_word
from mergeloom.recipe.yaml_reader import Document, plain_copy, read_documents
from mergeloom.types import Recipe

MAX_BYTES = 16 * 2**20
"""The largest recipe file that is read; anything larger is another kind of file."""


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    lenient: bool = False,
    methods: Mapping[str, MethodWords] | None = None,
    problems: Problems | None = None,
) -> Recipe:
    """Read a recipe, with every mistake told at once.

    Args:
        source: a path to a YAML file (a ``Path``, or a text that is an existing file or ends in
            ``.yml`` or ``.yaml``), YAML text (a text with a newline or a colon), or a mapping.
        lenient: unknown keys are ignored with a warning instead of being errors. A key on the
            wrong level is ignored too; it is not moved to where it belongs.
        methods: method names → their declarations. Without them neither the method's name nor
            its parameters are checked, and values are not converted to the declared types.
        problems: gets the warnings, also when there are mistakes.

    Returns:
        The recipe in normal form. Of a file with several documents, the unnamed one or else the
        last, with the documents it depends on in ``chain`` in the order to run.

    Raises:
        RecipeError: with every mistake found.
    """
    found = Problems()
    try:
        text, documents = _documents(source)
        recipes = [read_document(d, methods, found, lenient) for d in documents]
        read = [recipe for recipe in recipes if recipe is not None]
        refuse_misspelt_sources(read, found)
        found.raise_errors(RecipeError)
        final = arrange(read, found)
        if len(documents) > 1:  # it takes all of them to repeat what the final one says
            final = replace(final, text=text)
        return replace(final, warnings=tuple(found.warnings))
    finally:
        if problems is not None:
            for warning in found.warnings:
                problems.warn(warning.where, warning.message, warning.hint, warning.line)


def _documents(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, list[Document]]:
    """The text as given, and its documents."""
    if isinstance(source, Mapping):
        text = yaml.safe_dump(plain_copy(source), sort_keys=False)
        # Lines of a text the user never saw would only confuse.
        documents = [replace(d, lines={}, text=text, line=None) for d in read_documents(text)]
    elif isinstance(source, str) and not _is_path(source):
        text = source
        documents = read_documents(text)
    else:
        text = _file_text(Path(source))
        documents = read_documents(text)
    if not documents:
        where = "" if isinstance(source, Mapping | str) else os.fspath(source)
        raise RecipeError(Problem(where, "the recipe is empty"))
    return text, documents


def _is_path(source: str) -> bool:
    """Whether a text is a path rather than YAML."""
    if "\n" in source or not source.strip():
        return False
    if os.path.exists(source):
        return True
    if source.lower().endswith((".yml", ".yaml")):
        return ": " not in source
    return ":" not in source and not source.lstrip().startswith(("{", "["))


def _file_text(path: Path) -> str:
    """The text of a recipe file exactly as it stands, byte order mark and line ends included."""
    where = str(path)
    if os.path.isdir(path):
        found = sorted(name for name in _names(path) if name.endswith((".yml", ".yaml")))
        hint = f"It holds {', '.join(found[:5])}." if found else ""
        raise RecipeError(Problem(where, "is a folder; a recipe is a YAML file", hint))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(Problem(where, "does not exist", _nearby(path))) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(Problem(where, f"cannot be read: {reason}")) from None
    if len(raw) > MAX_BYTES:
        message = f"is larger than {MAX_BYTES >> 20} MiB; a recipe is a small YAML file"
        raise RecipeError(Problem(where, message))
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (the byte 0x{raw[error.start]:02x} on line {line})"
        raise RecipeError(Problem(where, message, "Save it as UTF-8.")) from None


def _names(folder: Path) -> list[str]:
    """What a folder holds, as far as it can be seen."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _nearby(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"The folder {parent} does not exist either."
    near = nearest_word(path.name, _names(parent))
    return near[:1].upper() + near[1:]

"""What the rules cannot tell about a model, stated in rows of YAML: built in, or ``--arch-file``.

A row is a mapping; a file holds one row or a list of them::

    model_type: inkling            # or a list; left out: every model
    stacks: {decoder.blocks: text_config.num_layers, adapter.parts: null}
    embeddings: [decoder.table.weight]
    heads: [unembed.weight]
    vocabulary: {unembed.bias: 0}
    modules: {vision: [eye, eye_projection]}
    order: fixed

``stacks`` maps a prefix to the config key that holds its number of layers, null for one that cannot
be sliced. ``embeddings`` and ``heads`` replace what the rules find, ``vocabulary`` adds tensors
with the axis that counts tokens, ``modules`` adds names to prefixes. ``order: fixed`` says that the
layers cannot be taken out of their order: config.json has no words for another one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mergeloom.errors import CheckpointError, MergeloomError, Problems, nearest
from mergeloom.recipe.yaml_reader import Document, join, read_documents
from mergeloom.types import line_of

BUILT_IN = Path(__file__).with_name("exceptions.yml")
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """One exception; see the module for its fields. ``where`` is its file, for messages."""

    where: str = ""
    model_types: tuple[str, ...] = ()
    stacks: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    embeddings: tuple[str, ...] | None = None
    heads: tuple[str, ...] | None = None
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed_order: bool = False

    def applies_to(self, config: Mapping[str, Any]) -> bool:
        """Whether the row holds for models with this config.json."""
        return not self.model_types or config.get("model_type") in self.model_types

    def names(self) -> tuple[str, ...]:
        """Every tensor name it states."""
        return (*(self.embeddings or ()), *(self.heads or ()), *self.vocabulary)

    def prefixes(self) -> tuple[str, ...]:
        """Every prefix it states."""
        return (*self.stacks, *(p for prefixes in self.modules.values() for p in prefixes))


Rows = tuple[Row, ...]


def row_for(config: Mapping[str, Any], rows: Rows = ()) -> Row:
    """All that the built-in rows and ``rows`` say about models with this config, as one row.

    ``rows`` win over the built-in ones, later ones over earlier ones.
    """
    whole = Row()
    for row in (*built_in_rows(), *rows):
        if row.applies_to(config):
            whole = Row(
                row.where,
                row.model_types,
                {**whole.stacks, **row.stacks},
                whole.embeddings if row.embeddings is None else row.embeddings,
                whole.heads if row.heads is None else row.heads,
                {**whole.vocabulary, **row.vocabulary},
                {**whole.modules, **row.modules},
                whole.fixed_order or row.fixed_order,
            )
    return whole


@functools.cache
def built_in_rows() -> Rows:
    """The exceptions that come with the package."""
    return _rows(BUILT_IN.read_text(encoding="utf-8"), BUILT_IN.name)


def read_rows(path: Path) -> Rows:
    """The rows of a user's file.

    Raises:
        CheckpointError: with every mistake in the file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} is no architecture file: it has {size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text file") from error
    return _rows(text, str(path))


def _rows(text: str, title: str) -> Rows:
    problems = Problems()
    try:
        documents = read_documents(text)
    except MergeloomError as error:
        for found in error.problems:
            problems.error(title, f"{found.where} {found.message}".strip(), found.hint, found.line)
        raise CheckpointError(problems.errors) from None
    rows = []
    for document in documents:
        entries = document.data if isinstance(document.data, list) else [document.data]
        for number, entry in enumerate(entries):
            path = join("", number) if isinstance(document.data, list) else ""
            rows.append(_Reader(title, document, problems).row(entry, path))
    if not rows:
        problems.error(title, "holds no row", f"Its keys are {', '.join(KEYS)}.")
    problems.raise_errors(CheckpointError)
    return tuple(rows)


@dataclass(frozen=True)
class _Reader:
    """Reads one document's rows; every mistake goes to ``problems`` with its place."""

    title: str
    document: Document
    problems: Problems

    def row(self, entry: Any, path: str) -> Row:
        if not isinstance(entry, Mapping):
            self._wrong(path, f"a row is a mapping of keys to values, not {entry!r}")
            return Row()
        for key in entry:
            if key not in KEYS:
                near = nearest(key, KEYS)
                keys = f"the keys of a row are {', '.join(KEYS)}"
                self._wrong(join(path, key), f"unknown key; {near or keys}")
        values = {
            name: read(self, entry[key], join(path, key))
            for key, (name, read) in KEYS.items()
            if entry.get(key) is not None
        }
        return Row(self.title, **values)

    def names(self, value: Any, path: str) -> tuple[str, ...]:
        """One text or a list of texts."""
        found = [value] if isinstance(value, str) else value
        if isinstance(found, list) and all(isinstance(v, str) and v for v in found):
            return tuple(found)
        self._wrong(path, f"a name or a list of names is wanted, not {value!r}")
        return ()

    def stacks(self, value: Any, path: str) -> dict[str, tuple[str, ...] | None]:
        """Prefix → dotted count key or null."""
        found: dict[str, tuple[str, ...] | None] = {}
        for prefix, key in self._mapping(value, path).items():
            if key is None or (isinstance(key, str) and key):
                found[prefix] = tuple(key.split(".")) if key else None
            else:
                self._wrong(
                    join(path, prefix),
                    f"the config key that counts its layers is wanted, or null, not {key!r}",
                )
        return found

    def axes(self, value: Any, path: str) -> dict[str, int]:
        """Tensor name → axis of the tokens."""
        found = {}
        for name, axis in self._mapping(value, path).items():
            if type(axis) is int and 0 <= axis <= 1:
                found[name] = axis
            else:
                self._wrong(join(path, name), f"the axis of the tokens, 0 or 1, not {axis!r}")
        return found

    def modules(self, value: Any, path: str) -> dict[str, tuple[str, ...]]:
        """Module name → prefixes."""
        return {
            name: self.names(prefixes, join(path, name))
            for name, prefixes in self._mapping(value, path).items()
        }

    def fixed(self, value: Any, path: str) -> bool:
        """The word ``fixed``."""
        if value != "fixed":
            self._wrong(path, f"the only word here is fixed, not {value!r}")
        return True

    def _mapping(self, value: Any, path: str) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        self._wrong(path, f"a mapping is wanted, not {value!r}")
        return {}

    def _wrong(self, path: str, message: str) -> None:
        line = line_of(self.document.lines, path)
        self.problems.error(f"{self.title}: {path}", message, line=line)


KEYS: Mapping[str, tuple[str, Callable[[_Reader, Any, str], Any]]] = {
    "model_type": ("model_types", _Reader.names),
    "stacks": ("stacks", _Reader.stacks),
    "embeddings": ("embeddings", _Reader.names),
    "heads": ("heads", _Reader.names),
    "vocabulary": ("vocabulary", _Reader.axes),
    "modules": ("modules", _Reader.modules),
    "order": ("fixed_order", _Reader.fixed),
}


class _Understood(Protocol):
    """What is asked of a layout to check a row against it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...


def check_rows(rows: Rows, layouts: Sequence[_Understood]) -> None:
    """Refuse what a user's rows say of tensors and config keys that no model has.

    Raises:
        CheckpointError: with every name that is in none of the models it speaks of.
    """
    problems = Problems()
    for row in rows:
        about = [layout for layout in layouts if row.applies_to(layout.config)]
        if not about:
            kinds = ", ".join(str(layout.config.get("model_type")) for layout in layouts)
            problems.error(
                row.where, f"no model is a {' or '.join(row.model_types)}; found {kinds}"
            )
            continue
        names = [name for layout in about for name in layout.shapes]
        for name in row.names():
            if name not in names:
                problems.error(row.where, f"no model has a tensor {name}; {nearest(name, names)}")
        heads = {name.rpartition(".")[0] for name in names}
        for prefix in row.prefixes():
            if not any(name.startswith(f"{prefix}.") for name in names):
                near = nearest(prefix, heads)
                problems.error(row.where, f"no tensor's name begins with {prefix}.; {near}")
        for prefix, key in row.stacks.items():
            if key and not any(_has(layout.config, key) for layout in about):
                where = f"{row.where}: stacks.{prefix}"
                problems.error(where, f"config.json has no {'.'.join(key)}")
    problems.raise_errors(CheckpointError)


def _has(config: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return True

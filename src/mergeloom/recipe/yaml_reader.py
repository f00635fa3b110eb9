"""YAML text to plain values, with the line of every key and list item.

The values follow YAML 1.1 as PyYAML's safe loader reads it (``on`` is a boolean, ``1e-10`` a
string), with two exceptions that only ever help: mapping keys stay the text that was written
(a token called ``on`` or ``1`` is a token), and dates stay text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mergeloom.errors import Problem, Problems, RecipeError
from mergeloom.recipe.words import shown
from mergeloom.recipe.yaml_errors import syntax_problem

MAX_NODES = 200_000
"""Values a recipe may hold, also once its aliases are written out; more is an alias bomb."""
MAX_DEPTH = 100
"""Nesting a recipe may have. Real ones stay under ten."""

_CORE = "tag:yaml.org,2002:"
_MERGE = _CORE + "merge"
_SCALAR_TAGS = {_CORE + kind for kind in ("null", "bool", "int", "float")}
_TEXT_TAGS = {_CORE + kind for kind in ("str", "value", "timestamp", "merge")}


@dataclass(frozen=True)
class Document:
    """One YAML document: plain values and where they stand.

    Args:
        data: dicts, lists and scalars; keys are text.
        lines: recipe path → 1-based line, counted from the start of the file.
        helpers: top-level keys whose value holds an anchor, which other values may repeat.
        text: the document as given; for a file of one document, the whole file.
        line: the line it begins at.
    """

    data: Any
    lines: Mapping[str, int] = field(default_factory=dict)
    helpers: frozenset[str] = frozenset()
    text: str = ""
    line: int | None = 1


def join(path: str, key: str | int) -> str:
    """The recipe path of a mapping's key or a list's item: ``models[0].parameters``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def read_documents(text: str) -> list[Document]:
    """Every document of a YAML text that is not empty.

    Raises:
        RecipeError: for broken YAML, a tag that is not plain data, a key written twice, an alias
            that contains itself, more than ``MAX_NODES`` values or ``MAX_DEPTH`` levels.
    """
    problems = Problems()
    roots: list[tuple[Node, int]] = []
    anchors: list[str] = []
    try:
        loader = _Loader(text, anchors)
        while loader.check_node():
            start = loader.next_event().start_mark
            node = loader.get_node()
            if node is not None:
                roots.append((node, start.index))
    except yaml.YAMLError as error:
        raise RecipeError(syntax_problem(error, text, anchors)) from None
    _refuse_bombs([node for node, _ in roots])
    documents = [_build(loader, node, problems) for node, _ in roots]
    problems.raise_errors(RecipeError)
    filled = [i for i, document in enumerate(documents) if document.data is not None]
    starts = [roots[i][1] for i in filled]
    return [
        replace(documents[i], text=_own_text(text, starts, place)) for place, i in enumerate(filled)
    ]


def _own_text(text: str, starts: list[int], place: int) -> str:
    """The part of the file a document takes: from after its ``---`` to the next one's."""
    if len(starts) == 1:
        return text
    first = starts[place] if place else 0
    last = starts[place + 1] if place + 1 < len(starts) else len(text)
    return re.sub(r"\A---[ \t]*\r?\n", "", text[first:last])


class _Loader(yaml.SafeLoader):
    """The safe loader, noting anchors and the places of aliases, and refusing deep nesting."""

    def __init__(self, text: str, anchor_names: list[str]) -> None:
        super().__init__(text)
        self.depth = 0
        self.nodes = 0
        self.anchored: dict[int, Node] = {}
        self.anchor_names = anchor_names
        self.alias_lines: dict[tuple[int, int], int] = {}

    def next_event(self) -> Any:
        """The event that is read next. (PyYAML's types do not cover its parser.)"""
        return self.peek_event()  # type: ignore[no-untyped-call]

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one value, as PyYAML does, taking notes."""
        event = self.next_event()
        anchor = getattr(event, "anchor", None)
        if anchor is None:
            return self._compose_deeper(parent, index, event)
        if isinstance(event, yaml.AliasEvent):
            if isinstance(index, int):
                mark: Any = event.start_mark
                self.alias_lines[id(parent), index] = mark.line + 1
            return super().compose_node(parent, index)
        self.anchor_names.append(anchor)
        node = self._compose_deeper(parent, index, event)
        if node is not None:
            self.anchored[id(node)] = node
        return node

    def _compose_deeper(self, parent: Node | None, index: Any, event: Any) -> Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            deep = f"nested more than {MAX_DEPTH} levels deep"
            long = f"more than {MAX_NODES:,} values, which no recipe has"
            raise yaml.MarkedYAMLError(
                problem=deep if self.depth > MAX_DEPTH else long, problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# Dates have no meaning in a recipe; a name or a revision may look like one.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _CORE + "timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _children(node: Node) -> list[Node]:
    if isinstance(node, SequenceNode):
        return list(node.value)
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return []


def _refuse_bombs(roots: list[Node]) -> None:
    """Count what the aliases stand for without writing it out, and find circles."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise RecipeError(Problem("", "an alias contains itself", line=_line(node)))
        if depth > MAX_DEPTH:
            message = f"nested more than {MAX_DEPTH} levels deep"
            raise RecipeError(Problem("", message, line=_line(node)))
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in _children(node))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if sum(size(root, 0) for root in roots) > MAX_NODES:
        message = f"the aliases of this file stand for more than {MAX_NODES:,} values"
        raise RecipeError(message)


def _build(loader: _Loader, root: Node, problems: Problems) -> Document:
    lines: dict[str, int] = {}
    data = _Builder(loader, lines, problems).value(root, "")
    helpers: set[str] = set()
    if isinstance(root, MappingNode):
        helpers = {key.value for key, value in root.value if _holds_anchor(loader, value, set())}
    return Document(data, lines, frozenset(helpers), line=_line(root))


def _holds_anchor(loader: _Loader, node: Node, seen: set[int]) -> bool:
    if id(node) in loader.anchored:
        return True
    if id(node) in seen:
        return False
    seen.add(id(node))
    return any(_holds_anchor(loader, child, seen) for child in _children(node))


@dataclass(frozen=True)
class _Builder:
    """Turns nodes into values, writing the line of each path as it goes."""

    loader: _Loader
    lines: dict[str, int]
    problems: Problems

    def value(self, node: Node, path: str) -> Any:
        if isinstance(node, MappingNode) and node.tag == _CORE + "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == _CORE + "seq":
            return self._sequence(node, path)
        if isinstance(node, ScalarNode) and node.tag in _TEXT_TAGS:
            return node.value
        if isinstance(node, ScalarNode) and node.tag in _SCALAR_TAGS:
            return self._scalar(node, path)
        tag = node.tag.replace(_CORE, "!!")
        message = f"the tag {tag} is refused: a recipe is plain data"
        self.problems.error(path, message, line=_line(node))
        return None

    def _scalar(self, node: ScalarNode, path: str) -> Any:
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            kind = node.tag.removeprefix(_CORE)
            message = (
                f"{shown(node.value)} cannot be read as {kind}; put it in quotes if it is text"
            )
            self.problems.error(path, message, line=_line(node))
            return None

    def _sequence(self, node: SequenceNode, path: str) -> list[Any]:
        items = []
        for i, item in enumerate(node.value):
            here = join(path, i)
            self.lines[here] = self.loader.alias_lines.get((id(node), i), _line(item))
            items.append(self.value(item, here))
        return items

    def _mapping(self, node: MappingNode, path: str) -> dict[str, Any]:
        written: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, ScalarNode):
                message = "a key must be a plain word, not a list or a mapping"
                self.problems.error(path, message, line=_line(key))
                continue
            name = str(key.value)
            here = join(path, name)
            if name in first_lines:
                before, now = first_lines[name], _line(key)
                message = f"written twice, on lines {before} and {now}"
                message = message if before != now else f"written twice on line {now}"
                self.problems.error(here, message, "Keep one of them.", _line(key))
                continue
            first_lines[name] = self.lines[here] = _line(key)
            written[name] = self.value(value, here)
        for key, value in node.value:
            if key.tag == _MERGE:
                self._merge(key, value, path, written)
        return written

    def _merge(self, key: Node, value: Node, path: str, into: dict[str, Any]) -> None:
        """``<<: *anchor``: the keys of other mappings, where this one does not say otherwise."""
        for source in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(source, MappingNode):
                message = "<<: wants a mapping or a list of mappings"
                self.problems.error(path, message, line=_line(key))
                continue
            lines: dict[str, int] = {}
            found = _Builder(self.loader, lines, self.problems).value(source, path)
            for name, merged in (found or {}).items():
                into.setdefault(name, merged)
            for place, line in lines.items():
                # A key that was overridden keeps the line where it was written.
                self.lines.setdefault(place, line)


def plain_copy(source: Mapping[Any, Any]) -> Any:
    """A parsed mapping as dicts, lists and scalars, so that it can be written as YAML.

    Raises:
        RecipeError: for a value that YAML cannot hold, or too many or too deeply nested ones.
    """
    left = [MAX_NODES]

    def copy(value: Any, path: str, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise RecipeError(f"{path[:80]}: too many or too deeply nested values")
        if isinstance(value, Mapping):
            return {_key(k): copy(v, join(path, _key(k)), depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, join(path, i), depth + 1) for i, item in enumerate(value)]
        for kind, convert in _PLAIN:
            if isinstance(value, kind):
                return convert(value)
        if value is None:
            return None
        if hasattr(value, "__fspath__"):
            return str(value)
        raise RecipeError(f"{path}: a {type(value).__name__} cannot stand in a recipe")

    return copy(source, "", 0)


# Subclasses (numpy's float64, enumerations of text) become what they stand for.
_PLAIN: list[tuple[type, Callable[[Any], Any]]] = [
    (bool, bool),
    (int, int),
    (float, float),
    (str, str),
]


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)

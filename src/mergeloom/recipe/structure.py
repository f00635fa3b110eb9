"""Levels of a recipe: mappings whose keys are declared once, for reading and for editors.

A level is a class whose attributes are ``key(...)``; reading a mapping gives an instance with the
values. Importing pydantic for this would take longer than planning a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mergeloom.recipe.words import kind_of

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """What is wrong at a place.

    Args:
        place: keys and indices from the top of the document.
        message: what to say; empty for a key that the level does not know.
        hint: what to do about it.
        suffix: where below the place, as it is written in a message.
        missing: whether the mistake is that the key of this place is absent.
    """

    place: Place
    message: str = ""
    hint: str = ""
    suffix: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Args:
        read: the value written, its place and the list of mistakes → what it stands for.
        schema: the JSON Schema of what may be written.
        absent: the value where the key is absent.
    """

    read: Callable[[Any, Place, list[Mistake]], Any]
    schema: Mapping[str, Any]
    absent: Any = None


@dataclass(frozen=True)
class Key:
    """A key of a level; ``required`` is the message where it is absent, empty if it may be."""

    kind: Kind
    description: str
    required: str = ""


def key(kind: Kind, description: str, required: str = "") -> Any:
    """Declare a key of a ``Level``; Any, so that the attribute has the type of its value."""
    return Key(kind, description, required)


class Level:
    """A mapping of the recipe. A key it does not know is an error."""

    bare: ClassVar[str] = ""
    """The key that is meant where a plain text is written instead of a mapping."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """Its keys, in the order of their declaration."""
        return {name: found for name, found in vars(cls).items() if isinstance(found, Key)}

    @classmethod
    def read(cls, value: Any, place: Place, mistakes: list[Mistake]) -> Any:
        """The level a mapping stands for; it is complete unless there are mistakes."""
        if cls.bare and isinstance(value, str):
            value = {cls.bare: value}
        if not isinstance(value, Mapping):
            mistakes.append(_no_mapping(value, place))
            return None
        found: dict[str, Any] = {}
        keys = cls.keys()
        for name, declared in keys.items():
            here = (*place, name)
            if name in value:
                found[name] = declared.kind.read(value[name], here, mistakes)
            elif declared.required:
                mistakes.append(Mistake(here, declared.required, missing=True))
            else:
                found[name] = declared.kind.absent
        mistakes += [Mistake((*place, name)) for name in value if name not in keys]
        return cls(found)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of the mapping."""
        keys = cls.keys()
        found: dict[str, Any] = {
            "description": cls.__doc__,
            "type": "object",
            "properties": {
                name: {**declared.kind.schema, "description": declared.description}
                for name, declared in keys.items()
            },
            "additionalProperties": False,
        }
        required = [name for name, declared in keys.items() if declared.required]
        return {**found, "required": required} if required else found


def scalar(read: Callable[[Any], Any], schema: Mapping[str, Any], absent: Any = None) -> Kind:
    """A value that a function reads; its ValueError says in one sentence what is wrong."""

    def convert(value: Any, place: Place, mistakes: list[Mistake]) -> Any:
        try:
            return read(value)
        except ValueError as error:
            suffix = getattr(error, "suffix", "")
            mistakes.append(Mistake(place, str(error), suffix=suffix))
            return None

    return Kind(convert, schema, absent)


def shared(name: str) -> dict[str, str]:
    """The schema that is defined once under a name."""
    return {"$ref": f"#/$defs/{name}"}


def one(level: type[Level]) -> Kind:
    """One mapping."""
    return Kind(level.read, shared(level.__name__))


def several(kind: Kind, least: int = 0) -> Kind:
    """A list of ``least`` items or more; null is an empty list where ``least`` is 0."""

    def read(value: Any, place: Place, mistakes: list[Mistake]) -> list[Any]:
        if value is None and not least:
            return []
        if not isinstance(value, list):
            hint = "Begin each entry with '-'." if isinstance(value, Mapping | str) else ""
            message = f"a list is wanted, not {kind_of(value)}"
            mistakes.append(Mistake(place, message, hint))
            return []
        if len(value) < least:
            mistakes.append(Mistake(place, "is empty"))
        return [kind.read(item, (*place, i), mistakes) for i, item in enumerate(value)]

    schema = {"type": "array", "items": kind.schema}
    if least:
        return Kind(read, {**schema, "minItems": least}, ())
    return Kind(read, _or_null(schema), ())


def named(kind: Kind, schema: Mapping[str, Any] | None = None) -> Kind:
    """A mapping from names to values; null is an empty one."""

    def read(value: Any, place: Place, mistakes: list[Mistake]) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            mistakes.append(_no_mapping(value, place))
            return {}
        return {name: kind.read(item, (*place, name), mistakes) for name, item in value.items()}

    return Kind(
        read, _or_null(schema or {"type": "object", "additionalProperties": kind.schema}), {}
    )


def optional(kind: Kind, empty: Any = None) -> Kind:
    """A value or null, which is read as ``empty``."""

    def read(value: Any, place: Place, mistakes: list[Mistake]) -> Any:
        if value is None and empty is None:
            return None
        return kind.read(empty if value is None else value, place, mistakes)

    return Kind(read, _or_null(kind.schema))


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _no_mapping(value: Any, place: Place) -> Mistake:
    hint = "Take away the '-' before its keys." if isinstance(value, list) else ""
    return Mistake(place, f"a mapping is wanted, not {kind_of(value)}", hint)

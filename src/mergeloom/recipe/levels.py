"""All ``parameters`` of a document: found, read, checked against the method, and warned about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergeloom.errors import Problems
from mergeloom.recipe.parameters import (
    EMBED_SLERP,
    FAMILIAR_PARAMETERS,
    MethodWords,
    ParameterWords,
    converted,
    known_parameters,
)
from mergeloom.recipe.schema import TOP_LEVEL_KEYS
from mergeloom.recipe.settings import NO_VALUE, SettingError, parse_setting
from mergeloom.recipe.words import nearest_match, nearest_word
from mergeloom.recipe.yaml_reader import join
from mergeloom.types import Setting, Settings, line_of

# The parameters of an entry of models or sources, and those given by model.
_PER_MODEL = re.compile(r"(^|\.)(models|sources)\[\d+\]\.parameters\.|^input_model_parameters\.")


@dataclass(frozen=True)
class Declarations:
    """The parameters one document's settings are held against.

    Args:
        method: the method's name as written.
        own: what the method reads; None when nothing is known about it.
        methods: every method there is, or None.
    """

    method: str
    own: Mapping[str, ParameterWords] | None
    methods: Mapping[str, MethodWords] | None

    @classmethod
    def of(cls, method: str, methods: Mapping[str, MethodWords] | None) -> Declarations:
        """The declarations of a method, or of the one that a misspelt name probably means."""
        if methods is None:
            return cls(method, None, None)
        # The parameters of a misspelt method are held against the one that was meant.
        meant = method if method in methods else nearest_match(method, methods)
        own = None if meant is None else {p.name: p for p in methods[meant].parameters}
        return cls(meant or method, own, methods)

    @cached_property
    def all(self) -> Mapping[str, ParameterWords]:
        """What any method reads. Computed on first use, because it loads plug-ins."""
        return known_parameters(self.methods)

    def names(self) -> frozenset[str]:
        """Every word that is a parameter's name somewhere."""
        return FAMILIAR_PARAMETERS | self.all.keys()

    def declaration(self, name: str) -> ParameterWords | None:
        """How the method declares a parameter, or None."""
        if self.own is not None and name in self.own:
            return self.own[name]
        return EMBED_SLERP if name == EMBED_SLERP.name else None

    def warning(self, name: str, per_model: bool) -> str:
        """The warning about a parameter that the method does not read here, or an empty text."""
        known = self.declaration(name)
        if known and per_model and not getattr(known, "per_model", True):
            return f"{name} is one value for all models, so it is not read here"
        if self.own is None or known:
            return ""
        reads = ", ".join(self.own) or "no parameters"
        if name in self.all:
            return f"{self.method} does not read {name}; it reads {reads}"
        near = nearest_word(name, self.own) or nearest_word(name, self.all)
        if near:
            return f"no method knows the parameter {name}, {near}"
        return f"no method knows the parameter {name}; {self.method} reads {reads}"


def parameter_maps(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every ``parameters`` of a document and its path, however broken the rest of it is."""
    yield "parameters", data.get("parameters")
    for model, parameters in _pairs(data.get("input_model_parameters")):
        yield f"input_model_parameters.{model}", parameters
    yield from _below(data, "")
    for name, module in _pairs(data.get("modules")):
        here = f"modules.{name}"
        if isinstance(module, Mapping):
            yield f"{here}.parameters", module.get("parameters")
            yield from _below(module, f"{here}.")


def _below(level: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for i, entry in _mappings(level.get("models")):
        yield f"{path}models[{i}].parameters", entry.get("parameters")
    for i, piece in _mappings(level.get("slices")):
        yield f"{path}slices[{i}].parameters", piece.get("parameters")
        for j, source in _mappings(piece.get("sources")):
            yield f"{path}slices[{i}].sources[{j}].parameters", source.get("parameters")


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _mappings(value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for i, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, Mapping):
            yield i, item


@dataclass(frozen=True)
class SettingsReader:
    """Reads the settings of one document into ``problems`` and normal forms."""

    declarations: Declarations
    lines: Mapping[str, int]
    problems: Problems
    lenient: bool

    def all(self, data: Mapping[str, Any]) -> dict[str, Settings]:
        """Path of a ``parameters`` → its settings in normal form."""
        return {
            path: self._level(found, path)
            for path, found in parameter_maps(data)
            if isinstance(found, Mapping)
        }

    def _level(self, found: Mapping[str, Any], path: str) -> Settings:
        settings: dict[str, Setting] = {}
        for name, value in found.items():
            setting = self._setting(name, value, join(path, name))
            if setting is not None:
                settings[name] = setting
        return settings

    def _setting(self, name: str, value: Any, where: str) -> Setting | None:
        known = self.declarations.declaration(name)
        line = line_of(self.lines, where)
        if not known and name in TOP_LEVEL_KEYS and name not in self.declarations.all:
            report = self.problems.warn if self.lenient else self.problems.error
            ignored = "; it is ignored" if self.lenient else ""
            report(where, f"{name} is a top-level key{ignored}", line=line)
            return None
        if not known and name in ("filter", "value"):
            message = "belongs inside a parameter: weight: [{filter: ..., value: ...}]"
            self.problems.error(where, message, line=line)
            return None
        if value is None:
            self.problems.error(where, NO_VALUE, line=line)
            return None
        try:
            setting = parse_setting(value)
        except SettingError as error:
            place = where + error.suffix
            self.problems.error(place, str(error), line=line_of(self.lines, place))
            return None
        if setting is None:
            return None
        setting, mistakes = converted(setting, known)
        for message in mistakes:
            self.problems.error(where, message, line=line)
        self._warn(name, setting, where, line)
        return setting

    def _warn(self, name: str, setting: Setting, where: str, line: int | None) -> None:
        unread = self.declarations.warning(name, _PER_MODEL.search(where) is not None)
        if unread:
            self.problems.warn(where, unread, line=line)
        for i, entry in enumerate(setting[:-1]):
            if entry.filter in (None, "*"):
                message = (
                    f"entry {i + 1} applies to all tensors, so the entries after it are never used"
                )
                self.problems.warn(where, message, line=line)
                return

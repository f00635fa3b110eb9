"""Every parameter of every tensor as a plain value, by the recipe's precedence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mergeloom.errors import Problems
from mergeloom.methods import Method, Parameter
from mergeloom.planning.plan import FilterUse
from mergeloom.planning.targets import Part
from mergeloom.recipe import matches, resolve_setting
from mergeloom.types import Input, Recipe, Scalar, Setting, Settings

Level = tuple[str, Settings]

LARGEST = 3e38
"""The largest parameter that float32 can hold."""


@dataclass
class Resolver:
    """Looks parameters up and remembers which filters matched which tensors.

    The one mutable thing in planning: it counts, so that a filter that matches nothing anywhere
    can be reported once for the whole recipe.
    """

    recipe: Recipe
    method: Method
    problems: Problems
    names: set[str] = field(default_factory=set)
    asked: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    missing: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    unmatched: set[tuple[str, str]] = field(default_factory=set)

    def shared(self, part: Part, name: str, position: float) -> dict[str, Scalar | None]:
        """The global parameters of one output tensor."""
        found: dict[str, Scalar | None] = {}
        for parameter in self.method.parameters:
            if not parameter.per_model:
                value = self._find(parameter, part.levels, name, position)
                if value is None and parameter.required:
                    self._miss(parameter, part.where, part.levels, name)
                found[parameter.name] = value
        return found

    def per_model(
        self, part: Part, entry: Input, name: str, position: float, *, is_base: bool
    ) -> dict[str, Scalar | None]:
        """The parameters of one input of one tensor; ``name`` is the input's own tensor name."""
        if is_base:
            return {}
        own: list[Level] = [(f"{entry.where}.parameters", entry.parameters), *part.levels]
        if by_model := self.recipe.model_parameters.get(entry.model):
            own.insert(1 + part.is_slice, ("input_model_parameters", by_model))
        found: dict[str, Scalar | None] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                value = self._find(parameter, own, name, position)
                if value is None and parameter.required:
                    self._miss(parameter, entry.where, own, name)
                found[parameter.name] = value
        return found

    def _miss(self, parameter: Parameter, where: str, levels: Sequence[Level], name: str) -> None:
        """Remember a tensor for which a required parameter has no value."""
        self.missing.setdefault((parameter.name, where), []).append(name)
        if any(parameter.name in settings for _, settings in levels):
            self.unmatched.add((parameter.name, where))

    def _find(
        self, parameter: Parameter, levels: Sequence[Level], name: str, position: float
    ) -> Scalar | None:
        self.names.add(name)
        for where, settings in levels:
            if (setting := settings.get(parameter.name)) is None:
                continue
            self._count(f"{where}.{parameter.name}", setting, name)
            value = resolve_setting(setting, name, position)
            if value is not None:
                return self._checked(parameter, value, f"{where}.{parameter.name}")
        return parameter.default

    def _count(self, where: str, setting: Setting, name: str) -> None:
        for number, conditional in enumerate(setting):
            if conditional.filter not in (None, "*"):
                place = f"{where}[{number}]" if len(setting) > 1 else where
                self.asked.setdefault((place, str(conditional.filter)), set()).add(name)

    def _checked(self, parameter: Parameter, value: Scalar, where: str) -> Scalar:
        """Numbers must fit float32, and an int parameter's gradient must land on integers."""
        if isinstance(value, float | int) and not abs(value) <= LARGEST:
            self.problems.error(
                where,
                f"{parameter.name} {value:g} is no number that weights can be multiplied with",
                "",
                self.recipe.line(where),
            )
            return 1.0
        if parameter.kind != "int" or float(value).is_integer():
            return int(value) if parameter.kind == "int" else value
        self.problems.error(
            where,
            f"{parameter.name} is a whole number but the gradient gives {value:g} in between",
            "Give one number, or one for each layer.",
            self.recipe.line(where),
        )
        return value

    def filters(self) -> tuple[FilterUse, ...]:
        """What every filter matched so far."""
        return tuple(
            FilterUse(where, pattern, sum(matches(pattern, n) for n in names), len(names))
            for (where, pattern), names in self.asked.items()
        )

    def report_missing(self) -> None:
        """One error for each required parameter that some input or level does not give."""
        for (name, where), tensors in self.missing.items():
            message = f"{self.method.name} needs {name}"
            hint = f"Add parameters: {{{name}: ...}} here or at the top level."
            if (name, where) in self.unmatched:
                more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
                message = f"no entry of {name} is for {tensors[0]}{more}"
                hint = f"Add a last entry without a filter to {name}: {{value: ...}}."
            self.problems.error(where, message, hint, self.recipe.line(where))

"""One YAML document to one ``Recipe``: structure, settings, and the checks that span keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergeloom.errors import Problems
from mergeloom.recipe.levels import Declarations, SettingsReader
from mergeloom.recipe.messages import validated
from mergeloom.recipe.parameters import MethodWords
from mergeloom.recipe.references import parse_reference
from mergeloom.recipe.schema import TOP_LEVEL_KEYS, Model, OutputSlice, RecipeFile, Token
from mergeloom.recipe.words import kind_of, nearest_word, shown, with_guess
from mergeloom.recipe.yaml_reader import Document
from mergeloom.types import (
    Input,
    ModelReference,
    Module,
    Recipe,
    Settings,
    Slice,
    TokenizerSettings,
    TokenSetting,
    line_of,
)


def read_document(
    document: Document,
    methods: Mapping[str, MethodWords] | None,
    problems: Problems,
    lenient: bool,
) -> Recipe | None:
    """The recipe in a document, or None with all its mistakes added to ``problems``."""
    if not isinstance(document.data, dict):
        message = f"a recipe is a mapping of keys to values, not {kind_of(document.data)}"
        problems.error("", message, line=document.line)
        return None
    data = {
        key: value
        for key, value in document.data.items()
        if key in TOP_LEVEL_KEYS or key not in document.helpers
    }
    method = data.get("merge_method")
    declarations = Declarations.of(method.strip() if isinstance(method, str) else "", methods)
    found = Problems()
    structure, meant = validated(data, document.lines, declarations.names, found, lenient)
    settings = SettingsReader(declarations, document.lines, found, lenient).all(data)
    checks = _Checks(data, document.lines, found, meant)
    checks.method(methods)
    checks.sections()
    checks.tokenizers()
    recipe = None
    if structure is not None:
        checks.ignored(structure)
        recipe = _Builder(structure, settings, document, data).recipe()
        checks.model_parameters(structure, recipe)
        checks.renames(recipe)
    # In the order of the file, which is how they will be mended.
    found.errors.sort(key=lambda problem: problem.line or 0)
    problems.errors += found.errors
    problems.warnings += found.warnings
    return None if found.errors else recipe


@dataclass(frozen=True)
class _Checks:
    """The checks that need more than one key."""

    data: Mapping[str, Any]
    lines: Mapping[str, int]
    problems: Problems
    meant: set[str]

    def error(self, where: str, message: str, hint: str = "") -> None:
        self.problems.error(where, message, hint, line_of(self.lines, where))

    def warn(self, where: str, message: str) -> None:
        self.problems.warn(where, message, line=line_of(self.lines, where))

    def method(self, methods: Mapping[str, MethodWords] | None) -> None:
        name = self.data.get("merge_method")
        if methods is None or not isinstance(name, str) or not name.strip():
            return
        if name.strip() not in methods:
            near = nearest_word(name, methods)
            message = f"unknown method {shown(name)}"
            message += f", {near} The" if near else "; the"
            self.error("merge_method", f"{message} methods are {', '.join(methods)}")

    def sections(self) -> None:
        """Exactly one of models, slices and modules, here and in each module."""
        self._one_section(self.data, "", ("models", "slices", "modules"))
        modules = self.data.get("modules")
        for name, module in modules.items() if isinstance(modules, Mapping) else ():
            if isinstance(module, Mapping):
                self._one_section(module, f"modules.{name}", ("models", "slices"))

    def _one_section(self, level: Mapping[str, Any], path: str, keys: tuple[str, ...]) -> None:
        prefix = f"{path}." if path else ""
        filled = [key for key in keys if level.get(key) not in (None, [], {})]
        if len(filled) > 1:
            message = f"{' and '.join(filled)} are both given; exactly one of them is wanted"
            self.error(prefix + filled[1], message)
        if filled or any(prefix + key in self.meant for key in keys):
            return
        empty = next((key for key in keys if key in level), None)
        choices = f"{', '.join(keys[:-1])} and {keys[-1]}"
        if empty:
            self.error(prefix + empty, f"is empty; one of {choices} must name the inputs")
        else:
            self.error(path, f"one of {choices} is required")

    def tokenizers(self) -> None:
        keys = ("tokenizer", "tokenizer_source")
        if all(self.data.get(key) is not None for key in keys):
            message = "tokenizer and tokenizer_source say the same thing; keep one of them"
            self.error("tokenizer_source", message)

    def ignored(self, structure: RecipeFile) -> None:
        """Warn of keys without effect and of models listed twice."""
        levels: list[tuple[str, list[Model], list[OutputSlice]]] = [
            ("", structure.models, structure.slices)
        ]
        for name, module in structure.modules.items():
            levels.append((f"modules.{name}.", module.models, module.slices))
        for path, models, slices in levels:
            first: dict[ModelReference, int] = {}
            for i, entry in enumerate(models):
                here = f"{path}models[{i}]"
                if entry.layer_range is not None:
                    message = "is ignored in models; use slices to choose layers"
                    self.warn(f"{here}.layer_range", message)
                if entry.model in first:
                    place = f"{path}models[{first[entry.model]}]"
                    message = f"{entry.model} is also {place}; both entries count"
                    self.warn(f"{here}.model", message)
                first.setdefault(entry.model, i)
            for i, piece in enumerate(slices):
                here = f"{path}slices[{i}]"
                if piece.residual_weight is not None:
                    self.warn(f"{here}.residual_weight", "is ignored; no tool reads it")
                layers: dict[object, int] = {}
                for j, source in enumerate(piece.sources):
                    same = layers.setdefault((source.model, source.layer_range), j)
                    if same != j:
                        message = f"{source.model} is also {here}.sources[{same}] with the same "
                        self.warn(f"{here}.sources[{j}]", f"{message}layers; both entries count")

    def renames(self, recipe: Recipe) -> None:
        """Report a model that two entries rename in different ways."""
        for entry in recipe.inputs():
            where, rules = recipe.rename_of(entry.model)
            if entry.rename and entry.rename != rules:
                message = f"{entry.model} is renamed in another way at {where}; say it once"
                self.error(f"{entry.where}.rename", message)

    def model_parameters(self, structure: RecipeFile, recipe: Recipe) -> None:
        """The keys of ``input_model_parameters`` must be models, and should be used here."""
        used = recipe.models()
        for name in structure.input_model_parameters:
            where = f"input_model_parameters.{name}"
            try:
                model = parse_reference(name)
            except ValueError as error:
                self.error(where, str(error))
                continue
            if model not in used:
                message = "this recipe does not use this model"
                self.warn(where, with_guess(message, name, used))


@dataclass(frozen=True)
class _Builder:
    """Puts the validated structure and the settings into the values of ``mergeloom.types``."""

    structure: RecipeFile
    settings: Mapping[str, Settings]
    document: Document
    data: Mapping[str, Any]

    def recipe(self) -> Recipe:
        found = self.structure
        return Recipe(
            merge_method=found.merge_method,
            modules=self._modules(),
            base_model=found.base_model,
            parameters=self._at("parameters"),
            model_parameters=self._model_parameters(),
            dtype=found.dtype,
            out_dtype=found.out_dtype,
            name=found.name,
            include=found.include,
            exclude=found.exclude,
            tokenizer=self._tokenizer(),
            chat_template=found.chat_template,
            tie=found.tie or "keep",
            text=self.document.text,
            lines=self.document.lines,
        )

    def _at(self, path: str) -> Settings:
        return self.settings.get(path, {})

    def _modules(self) -> tuple[Module, ...]:
        found = self.structure
        if not found.modules:
            inputs, slices = self._inputs(found.models, ""), self._slices(found.slices, "")
            return (Module(None, inputs, slices),)
        modules = []
        for name, entry in found.modules.items():
            here = f"modules.{name}"
            inputs = self._inputs(entry.models, f"{here}.")
            slices = self._slices(entry.slices, f"{here}.")
            parameters = self._at(f"{here}.parameters")
            modules.append(Module(name, inputs, slices, parameters, here))
        return tuple(modules)

    def _inputs(self, models: list[Model], path: str) -> tuple[Input, ...]:
        places = [f"{path}models[{i}]" for i in range(len(models))]
        return tuple(
            Input(entry.model, None, self._at(f"{here}.parameters"), here, entry.rename)
            for entry, here in zip(models, places, strict=True)
        )

    def _slices(self, slices: list[OutputSlice], path: str) -> tuple[Slice, ...]:
        return tuple(self._slice(piece, f"{path}slices[{i}]") for i, piece in enumerate(slices))

    def _slice(self, piece: OutputSlice, here: str) -> Slice:
        inputs = []
        for i, source in enumerate(piece.sources):
            place = f"{here}.sources[{i}]"
            parameters = self._at(f"{place}.parameters")
            inputs.append(Input(source.model, source.layer_range, parameters, place, source.rename))
        return Slice(tuple(inputs), piece.base_model, self._at(f"{here}.parameters"), here)

    def _model_parameters(self) -> dict[ModelReference, Settings]:
        found: dict[ModelReference, Settings] = {}
        for name in self.structure.input_model_parameters:
            try:
                model = parse_reference(name)
            except ValueError:
                continue  # reported by the checks
            found[model] = self._at(f"input_model_parameters.{name}")
        return found

    def _tokenizer(self) -> TokenizerSettings | None:
        block = self.structure.tokenizer
        if block is None:
            source = self.structure.tokenizer_source
            return TokenizerSettings(source, where="tokenizer_source") if source else None
        return TokenizerSettings(
            source=block.source or "union",
            tokens={name: _token(raw) for name, raw in block.tokens.items()},
            pad_to_multiple_of=block.pad_to_multiple_of,
            union_mode=block.union_mode,
            missing=block.missing,
        )


def _token(raw: Token) -> TokenSetting:
    """A token's entry in normal form."""
    source = raw.source
    flags = TokenSetting(force=raw.force, special=raw.special)
    if source is None:
        return flags
    if not (isinstance(source, Mapping) and "kind" in source):
        return replace(flags, kind="model", model=parse_reference(source))
    if source["kind"] != "model_token":
        return replace(flags, kind=source["kind"])
    return replace(
        flags,
        kind="model_token",
        model=parse_reference(source["model"]),
        token=source.get("token"),
        token_id=source.get("token_id"),
    )

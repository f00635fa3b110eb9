"""The recipe's structure: one attribute per key, described for editors.

Only structure lives here. Parameters are read by ``settings``, so that each gives one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mergeloom.recipe import fields
from mergeloom.recipe.references import parse_reference
from mergeloom.recipe.structure import Level, key, named, one, optional, scalar, several, shared
from mergeloom.types import Missing, ModelReference, Renames, Tie, UnionMode


def _as_written(value: Any) -> Any:
    return value


# Schemas that are only a name are defined by ``editor``.
REFERENCE = scalar(parse_reference, shared("Reference"))
METHOD = scalar(fields.method_name, shared("Method"))
DTYPE = optional(scalar(fields.dtype, shared("DType")))
RANGE = scalar(fields.layer_range, shared("LayerRange"))
RENAMES = scalar(fields.renames, shared("Renames"), absent=())
PATTERNS = scalar(fields.patterns, shared("Patterns"), absent=())
TEMPLATE = scalar(fields.chat_template, shared("ChatTemplate"))
VOCABULARY = scalar(fields.tokenizer_source, shared("TokenizerSource"))
TOKEN_SOURCE = scalar(fields.token_source, shared("TokenSource"))
FLAG = scalar(fields.flag, {"type": "boolean"}, absent=False)
PADDING = scalar(
    fields.padding, {"type": "integer", "minimum": 1, "maximum": fields.LARGEST_PADDING}
)
NAME = scalar(fields.document_name, {"type": "string", "minLength": 1})
UNION_MODE = scalar(fields.union_mode, {"enum": list(fields.UNION_MODES)})
TIE = scalar(fields.tie, {"enum": list(fields.TIES)})
MISSING = scalar(fields.missing, {"enum": list(fields.MISSING)})
IGNORED = scalar(_as_written, {"deprecated": True})
PARAMETERS = named(scalar(_as_written, {}), shared("Parameters"))

_MODEL = "Folder, file or hub id of the model."
_A_MODEL = "is required: a folder, a file or a hub id"
_RENAMES = "Beginnings of this model's tensor names, or re:..., and new ones."
_PARAMETERS = "Settings of the merge method; the nearest level to the input wins."


class Model(Level):
    """One input model with its own parameters; a plain text is the model alone."""

    bare: ClassVar[str] = "model"
    model: ModelReference = key(REFERENCE, _MODEL, required=_A_MODEL)
    parameters: dict[str, Any] = key(PARAMETERS, _PARAMETERS)
    rename: Renames = key(RENAMES, _RENAMES)
    layer_range: Any = key(IGNORED, "Ignored here; use slices.")


class Source(Level):
    """The layers of one model that go into a slice."""

    bare: ClassVar[str] = "model"
    model: ModelReference = key(REFERENCE, _MODEL, required=_A_MODEL)
    layer_range: tuple[int, int | None] = key(
        RANGE,
        "[start, end): counted from 0, the end is exclusive.",
        required="is required in a slice: [start, end), counted from 0, the end is exclusive",
    )
    parameters: dict[str, Any] = key(PARAMETERS, _PARAMETERS)
    rename: Renames = key(RENAMES, _RENAMES)


class OutputSlice(Level):
    """Consecutive output layers, made from equally long ranges of one or more models."""

    sources: list[Source] = key(
        several(one(Source), least=1),
        "The models and layers.",
        required="is required: the models and layers of the slice",
    )
    base_model: ModelReference | None = key(optional(REFERENCE), "The base for this slice only.")
    parameters: dict[str, Any] = key(PARAMETERS, _PARAMETERS)
    residual_weight: Any = key(IGNORED, "Ignored.")


class ModuleEntry(Level):
    """One part of a model that has several: its own ``models`` or ``slices``."""

    models: list[Model] = key(several(one(Model)), "The input models.")
    slices: list[OutputSlice] = key(several(one(OutputSlice)), "Output layers.")
    parameters: dict[str, Any] = key(PARAMETERS, _PARAMETERS)


class Token(Level):
    """Where the embedding of one token comes from."""

    source: Any = key(TOKEN_SOURCE, "A model (its row of this token), another token, or zeros.")
    force: bool = key(FLAG, "Use it for every model, even those that have the token.")
    special: bool = key(FLAG, "Whether a new token is a special one.")


class Tokenizer(Level):
    """How the output vocabulary is made."""

    source: str | ModelReference | None = key(
        VOCABULARY, "union (all tokens), base, or a model. Default union."
    )
    tokens: dict[str, Token] = key(
        named(optional(one(Token), empty={})), "Tokens whose embedding is chosen by hand."
    )
    pad_to_multiple_of: int | None = key(PADDING, "Round the vocabulary size up.")
    union_mode: UnionMode | None = key(
        UNION_MODE, "How a union takes in ordinary tokens of other models. Default merge."
    )
    missing: Missing | None = key(
        MISSING, "The embedding of a token a model does not have. Default peers."
    )


class RecipeFile(Level):
    """One document of a recipe file."""

    merge_method: str = key(
        METHOD, "How the models are combined.", required="is required: the name of a merge method"
    )
    models: list[Model] = key(
        several(one(Model)), "The input models, whole. One of models, slices, modules."
    )
    slices: list[OutputSlice] = key(
        several(one(OutputSlice)), "The output layers, in order. One of models, slices, modules."
    )
    modules: dict[str, ModuleEntry] = key(
        named(one(ModuleEntry)), "Parts of a model by name. One of models, slices, modules."
    )
    base_model: ModelReference | None = key(
        optional(REFERENCE),
        "Gives config and tokenizer, and is the base of methods that use one.",
    )
    parameters: dict[str, Any] = key(PARAMETERS, _PARAMETERS)
    input_model_parameters: dict[str, dict[str, Any]] = key(
        named(PARAMETERS), "Settings by model, below those of slices."
    )
    dtype: str | None = key(DTYPE, "Number format of the result.")
    out_dtype: str | None = key(DTYPE, "Number format on disk. Default: dtype.")
    tokenizer_source: str | ModelReference | None = key(
        VOCABULARY, "Short form of tokenizer: union, base, or a model."
    )
    tokenizer: Tokenizer | None = key(optional(one(Tokenizer)), "The output vocabulary.")
    chat_template: str | ModelReference | None = key(
        TEMPLATE, "auto, a built-in name, a Jinja text, or {model: ...}."
    )
    tie: Tie | None = key(
        TIE,
        "Output head and input embedding: keep (one tensor when all models are tied), "
        "force (always one), break (always two). Default keep.",
    )
    name: str | None = key(NAME, "By which other documents of the file use this result.")
    include: tuple[str, ...] = key(
        PATTERNS, "Merge only tensors with these names: globs, or re:..."
    )
    exclude: tuple[str, ...] = key(
        PATTERNS, "Do not merge tensors with these names: globs, or re:..."
    )


TOP_LEVEL_KEYS = tuple(RecipeFile.keys())
LEVELS = (Model, ModuleEntry, OutputSlice, Source, Token, Tokenizer)
"""The levels below the top."""


def level_of(parents: tuple[str | int, ...]) -> type[Level] | None:
    """The model of the mapping at a place: ``("slices", 0, "sources", 1)`` → ``Source``."""
    if not parents:
        return RecipeFile
    if parents == ("tokenizer",):
        return Tokenizer
    if parents[0] == "tokenizer":
        return Token
    if parents[0] == "modules":
        if len(parents) == 2:
            return ModuleEntry
        parents = parents[2:]
    words: Mapping[str | int, type[Level]] = {
        "models": Model,
        "sources": Source,
        "slices": OutputSlice,
    }
    return words.get(parents[-2]) if len(parents) > 1 else None

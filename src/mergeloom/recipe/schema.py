"""The recipe's structure as pydantic models: one field per key, described for editors.

Only structure lives here. Parameters are read by ``settings``, so that each gives one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mergeloom.recipe import fields
from mergeloom.recipe.references import parse_reference
from mergeloom.types import Missing, ModelReference, Renames

SHARED = "x-shared-definition"


def mistake(message: str, suffix: str = "") -> PydanticCustomError:
    """A pydantic error that carries our own words and the place below the field."""
    return PydanticCustomError("recipe", "{text}", {"text": message, "suffix": suffix})


def _shared(name: str) -> dict[str, str]:
    """A reference to a definition that ``editor`` adds; pydantic would refuse a plain $ref."""
    return {SHARED: name}


def _plain(read: Any, schema: dict[str, Any]) -> Any:
    """An annotation: read by ``read`` (ValueError → our words), shown to editors as ``schema``."""

    def validate(value: Any) -> Any:
        try:
            return read(value)
        except ValueError as error:
            raise mistake(str(error), getattr(error, "suffix", "")) from None

    return (PlainValidator(validate), WithJsonSchema(schema))


_read_reference, _reference_schema = _plain(parse_reference, _shared("Reference"))
_read_dtype, _dtype_schema = _plain(fields.dtype, _shared("DType"))
_read_range, _range_schema = _plain(fields.layer_range, _shared("LayerRange"))
_read_source, _source_schema = _plain(fields.tokenizer_source, _shared("TokenizerSource"))
_read_template, _template_schema = _plain(fields.chat_template, _shared("ChatTemplate"))
_read_patterns, _patterns_schema = _plain(fields.patterns, _shared("Patterns"))
_read_renames, _renames_schema = _plain(fields.renames, _shared("Renames"))
_read_method, _method_schema = _plain(fields.method_name, _shared("Method"))
_read_name, _name_schema = _plain(fields.document_name, {"type": "string", "minLength": 1})
_read_token, _token_schema = _plain(fields.token_source, _shared("TokenSource"))
_read_pad, _pad_schema = _plain(
    fields.padding, {"type": "integer", "minimum": 1, "maximum": fields.LARGEST_PADDING}
)
_read_flag, _flag_schema = _plain(fields.flag, {"type": "boolean"})
_read_union, _union_schema = _plain(fields.union_mode, {"enum": list(fields.UNION_MODES)})
_read_tie, _tie_schema = _plain(fields.tie, {"enum": list(fields.TIES)})
_read_missing, _missing_schema = _plain(fields.missing, {"enum": list(fields.MISSING)})

Reference = Annotated[ModelReference, _read_reference, _reference_schema]
DTypeName = Annotated[str, _read_dtype, _dtype_schema]
Range = Annotated[tuple[int, int | None], _read_range, _range_schema]
Patterns = Annotated[tuple[str, ...], _read_patterns, _patterns_schema]
Rename = Annotated[
    Renames,
    _read_renames,
    _renames_schema,
    Field(description="Beginnings of this model's tensor names, or re:..., and new ones."),
]


def _nullable(value: Any) -> Any:
    return {} if value is None else value


def _nullable_list(value: Any) -> Any:
    return [] if value is None else value


Parameters = Annotated[
    dict[str, Any],
    BeforeValidator(_nullable),
    WithJsonSchema({"anyOf": [_shared("Parameters"), {"type": "null"}]}),
]
_PARAMETERS = "Settings of the merge method; the nearest level to the input wins."


def _ignored(description: str) -> Any:
    # Not pydantic's own ``deprecated``, which warns whenever the field is read.
    return Field(description=description, json_schema_extra={"deprecated": True})


class Level(BaseModel):
    """A mapping of the recipe. A key it does not know is an error."""

    # Built on first use: ``import mergeloom`` and --help need no validator.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)


class Model(Level):
    """One input model with its own parameters; a plain text is the model alone."""

    model: Annotated[Reference, Field(description="Folder, file or hub id of the model.")]
    parameters: Annotated[Parameters, Field(description=_PARAMETERS)] = {}
    rename: Rename = ()
    layer_range: Annotated[Any, _ignored("Ignored here; use slices.")] = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Source(Level):
    """The layers of one model that go into a slice."""

    model: Annotated[Reference, Field(description="Folder, file or hub id of the model.")]
    layer_range: Annotated[
        Range, Field(description="[start, end): counted from 0, the end is exclusive.")
    ]
    parameters: Annotated[Parameters, Field(description=_PARAMETERS)] = {}
    rename: Rename = ()

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class OutputSlice(Level):
    """Consecutive output layers, made from equally long ranges of one or more models."""

    sources: Annotated[list[Source], Field(description="The models and layers.", min_length=1)]
    base_model: Annotated[Reference | None, Field(description="The base for this slice only.")] = (
        None
    )
    parameters: Annotated[Parameters, Field(description=_PARAMETERS)] = {}
    residual_weight: Annotated[Any, _ignored("Ignored.")] = None


class ModuleEntry(Level):
    """One part of a model that has several: its own ``models`` or ``slices``."""

    models: Annotated[
        list[Model], BeforeValidator(_nullable_list), Field(description="The input models.")
    ] = []
    slices: Annotated[
        list[OutputSlice], BeforeValidator(_nullable_list), Field(description="Output layers.")
    ] = []
    parameters: Annotated[Parameters, Field(description=_PARAMETERS)] = {}


class Token(Level):
    """Where the embedding of one token comes from."""

    source: Annotated[
        Any,
        _read_token,
        _token_schema,
        Field(description="A model (its row of this token), another token, or zeros."),
    ] = None
    force: Annotated[
        bool,
        _read_flag,
        _flag_schema,
        Field(description="Use it for every model, even those that have the token."),
    ] = False
    special: Annotated[
        bool, _read_flag, _flag_schema, Field(description="Whether a new token is a special one.")
    ] = False


Tokens = Annotated[
    dict[str, Annotated[Token, BeforeValidator(_nullable)]], BeforeValidator(_nullable)
]


class Tokenizer(Level):
    """How the output vocabulary is made."""

    source: Annotated[
        Any,
        _read_source,
        _source_schema,
        Field(description="union (all tokens), base, or a model. Default union."),
    ] = "union"
    tokens: Annotated[Tokens, Field(description="Tokens whose embedding is chosen by hand.")] = {}
    pad_to_multiple_of: Annotated[
        int | None, _read_pad, _pad_schema, Field(description="Round the vocabulary size up.")
    ] = None
    union_mode: Annotated[
        str | None,
        _read_union,
        _union_schema,
        Field(description="How a union takes in ordinary tokens of other models. Default merge."),
    ] = None
    missing: Annotated[
        Missing | None,
        _read_missing,
        _missing_schema,
        Field(description="The embedding of a token a model does not have. Default peers."),
    ] = None


class RecipeFile(Level):
    """One document of a recipe file."""

    merge_method: Annotated[
        str, _read_method, _method_schema, Field(description="How the models are combined.")
    ]
    models: Annotated[
        list[Model],
        BeforeValidator(_nullable_list),
        Field(description="The input models, whole. One of models, slices, modules."),
    ] = []
    slices: Annotated[
        list[OutputSlice],
        BeforeValidator(_nullable_list),
        Field(description="The output layers, in order. One of models, slices, modules."),
    ] = []
    modules: Annotated[
        dict[str, ModuleEntry],
        BeforeValidator(_nullable),
        Field(description="Parts of a model by name. One of models, slices, modules."),
    ] = {}
    base_model: Annotated[
        Reference | None,
        Field(description="Gives config and tokenizer, and is the base of methods that use one."),
    ] = None
    parameters: Annotated[Parameters, Field(description=_PARAMETERS)] = {}
    input_model_parameters: Annotated[
        dict[str, Parameters],
        BeforeValidator(_nullable),
        Field(description="Settings by model, below those of slices."),
    ] = {}
    dtype: Annotated[DTypeName | None, Field(description="Number format of the result.")] = None
    out_dtype: Annotated[
        DTypeName | None, Field(description="Number format on disk. Default: dtype.")
    ] = None
    tokenizer_source: Annotated[
        Any,
        _read_source,
        _source_schema,
        Field(description="Short form of tokenizer: union, base, or a model."),
    ] = None
    tokenizer: Annotated[Tokenizer | None, Field(description="The output vocabulary.")] = None
    chat_template: Annotated[
        Any,
        _read_template,
        _template_schema,
        Field(description="auto, a built-in name, a Jinja text, or {model: ...}."),
    ] = None
    tie: Annotated[
        str | None,
        _read_tie,
        _tie_schema,
        Field(
            description="Output head and input embedding: keep (one tensor when all models are "
            "tied), force (always one), break (always two). Default keep."
        ),
    ] = None
    name: Annotated[
        str | None,
        _read_name,
        _name_schema,
        Field(description="By which other documents of the file use this result."),
    ] = None
    include: Annotated[
        Patterns, Field(description="Merge only tensors with these names: globs, or re:...")
    ] = ()
    exclude: Annotated[
        Patterns, Field(description="Do not merge tensors with these names: globs, or re:...")
    ] = ()


TOP_LEVEL_KEYS = tuple(RecipeFile.model_fields)


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

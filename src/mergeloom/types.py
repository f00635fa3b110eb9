"""The frozen values that travel between the stages. Imports no stage and no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from mergeloom.errors import Problem

# --- dtypes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DType:
    """A number format by its safetensors name (``BF16``) and its torch name (``bfloat16``)."""

    name: str
    torch_name: str
    bytes: int
    is_float: bool


_TABLE = [
    DType("F64", "float64", 8, True),
    DType("F32", "float32", 4, True),
    DType("F16", "float16", 2, True),
    DType("BF16", "bfloat16", 2, True),
    DType("F8_E4M3", "float8_e4m3fn", 1, True),
    DType("F8_E5M2", "float8_e5m2", 1, True),
    DType("F8_E8M0", "float8_e8m0fnu", 1, True),
    DType("C64", "complex64", 8, False),
    DType("I64", "int64", 8, False),
    DType("I32", "int32", 4, False),
    DType("I16", "int16", 2, False),
    DType("I8", "int8", 1, False),
    DType("U64", "uint64", 8, False),
    DType("U32", "uint32", 4, False),
    DType("U16", "uint16", 2, False),
    DType("U8", "uint8", 1, False),
    DType("BOOL", "bool", 1, False),
]
DTYPES: Mapping[str, DType] = MappingProxyType({d.name: d for d in _TABLE})
DTYPES_BY_TORCH_NAME: Mapping[str, DType] = MappingProxyType({d.torch_name: d for d in _TABLE})
ARITHMETIC_DTYPES = ("F64", "F32", "F16", "BF16")
"""The formats a merge computes with; every other format is copied, never averaged."""


# --- recipe -----------------------------------------------------------------------------------

Scalar = float | int | bool | str


@dataclass(frozen=True)
class Conditional:
    """``{filter, value}``: a value, or a gradient of values, for the tensors a filter matches.

    ``filter`` is None (all tensors), a plain substring, ``glob:…`` or ``re:…``.
    ``value`` is one scalar, or a tuple of scalars interpolated over the layers of a slice.
    """

    filter: str | None
    value: Scalar | tuple[Scalar, ...]


Setting = tuple[Conditional, ...]
"""The normal form of a parameter in a recipe: tried in order, the first match wins."""

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class ModelReference:
    """``path[@revision][+lora[@lora_revision]]``: a folder, a file or a hub id."""

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}@{self.revision}" if self.revision else self.path
        if self.lora:
            text += f"+{self.lora}"
            text += f"@{self.lora_revision}" if self.lora_revision else ""
        return text


Renames = tuple[tuple[str, str], ...]
"""(prefix of a tensor name or ``re:…``, its replacement), tried in order."""


@dataclass(frozen=True)
class Input:
    """One entry of ``models`` or one source of a slice.

    ``layer_range`` is [start, end), zero-based; an end of None means the model's last layer.
    ``rename`` gives the model's tensors other names. ``where`` is its place in the recipe
    (``slices[0].sources[1]``).
    """

    model: ModelReference
    layer_range: tuple[int, int | None] | None = None
    parameters: Settings = field(default_factory=dict)
    where: str = ""
    rename: Renames = ()


@dataclass(frozen=True)
class Slice:
    """Consecutive output layers made from equally long layer ranges of one or more inputs."""

    inputs: tuple[Input, ...]
    base_model: ModelReference | None = None
    parameters: Settings = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Module:
    """A part of the model with its own inputs: ``inputs`` (the ``models`` form) or ``slices``.

    ``name`` is None for the recipe's top level, which means the whole model.
    """

    name: str | None
    inputs: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Settings = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class TokenSetting:
    """Where the row of one token comes from.

    Args:
        kind: ``default`` (the rules for every token), ``model`` (a model's row of this token),
            ``model_token`` (its row of another ``token``, or row ``token_id``), ``zero``, or
            ``mean_of_subwords``.
        force: every input gets that row, also those that have the token.
        special: a token that is new becomes a special one.
    """

    kind: str = "default"
    model: ModelReference | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False
    special: bool = False


Missing = Literal["peers", "subword", "mean", "zero"]
"""What a model that lacks a token gets for its row; see ``vocabulary.rows``."""

UnionMode = Literal["merge", "added_only", "vocab_only"]
"""How a union takes in the other models' regular tokens; see ``vocabulary.union``."""

Tie = Literal["keep", "force", "break"]
"""Whether the output's head is its input embedding."""


@dataclass(frozen=True)
class TokenizerSettings:
    """``tokenizer:`` or ``tokenizer_source:``. ``source`` is ``union``, ``base`` or a model.

    ``tokens`` maps token text to its setting, in file order.
    """

    source: str | ModelReference
    tokens: Mapping[str, TokenSetting] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    union_mode: UnionMode | None = None
    missing: Missing | None = None
    where: str = "tokenizer"


@dataclass(frozen=True)
class Recipe:
    """One merge as the user wrote it, in normal form.

    Args:
        merge_method: the method's name as written.
        modules: one module named None (top-level ``models`` or ``slices``), or the named ones.
        base_model: donor of config and tokenizer, and the base of methods that use one.
        parameters: the top-level settings, lowest precedence.
        model_parameters: ``input_model_parameters`` by reference, below slice level.
        dtype, out_dtype: safetensors dtype names (``BF16``) or None.
        include, exclude: tensor patterns (globs or ``re:``); what they leave out stays the base's.
        tie: ``keep``, ``force`` (the head is the input embedding) or ``break`` (it is its own).
        text: the document exactly as given; of the last of several, the whole file.
        lines: recipe path → 1-based line, for messages.
        chain: the documents of the same file that come before this one, in the order to run.
            A model reference whose ``path`` is a chain document's ``name`` means its result.
        warnings: from reading the file, all its documents included.
    """

    merge_method: str
    modules: tuple[Module, ...]
    base_model: ModelReference | None = None
    parameters: Settings = field(default_factory=dict)
    model_parameters: Mapping[ModelReference, Settings] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    name: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tokenizer: TokenizerSettings | None = None
    chat_template: str | ModelReference | None = None
    tie: Tie = "keep"
    text: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    chain: tuple[Recipe, ...] = ()
    warnings: tuple[Problem, ...] = field(default=(), compare=False)

    def models(self) -> tuple[ModelReference, ...]:
        """Every model used, in order of first appearance, the base first if there is one."""
        found = [self.base_model] if self.base_model else []
        for module in self.modules:
            found += [i.model for i in module.inputs]
            for piece in module.slices:
                found += [piece.base_model] if piece.base_model else []
                found += [i.model for i in piece.inputs]
        return tuple(dict.fromkeys(found))

    def inputs(self) -> tuple[Input, ...]:
        """Every entry of ``models`` and every source of a slice, in order."""
        pieces = [(m.inputs, *(piece.inputs for piece in m.slices)) for m in self.modules]
        return tuple(entry for own in pieces for inputs in own for entry in inputs)

    def rename_of(self, model: ModelReference) -> tuple[str, Renames]:
        """(place in the recipe, rules) of a model's ``rename``; ("", ()) if it has none."""
        found = ((f"{i.where}.rename", i.rename) for i in self.inputs() if i.model == model)
        return next((entry for entry in found if entry[1]), ("", ()))

    def lenders(self) -> tuple[ModelReference, ...]:
        """Models that are not merged, but lend a tokenizer, single rows or a chat template."""
        settings, merged = self.tokenizer, self.models()
        rows = (settings.source, *(t.model for t in settings.tokens.values())) if settings else ()
        lent = [r for r in (*rows, self.chat_template) if isinstance(r, ModelReference)]
        return tuple(r for r in dict.fromkeys(lent) if r not in merged)

    def line(self, where: str) -> int | None:
        """The line of a recipe path, or of its nearest parent that has one."""
        return line_of(self.lines, where)


def line_of(lines: Mapping[str, int], where: str) -> int | None:
    """The line of a recipe path, or of its nearest parent that has one."""
    while where:
        if where in lines:
            return lines[where]
        cut = max(where.rfind("."), where.rfind("["))
        where = where[:cut] if cut > 0 else ""
    return None


# --- checkpoint -------------------------------------------------------------------------------


class Scratch(Protocol):
    """Reusable memory of one worker. Buffers live until the same key is asked for again."""

    def bytes(self, key: object, nbytes: int) -> memoryview:
        """A writable buffer of exactly ``nbytes``."""
        ...


class View(Protocol):
    """A tensor as the plan sees it, wherever its numbers come from.

    A view is a frozen, hashable value (a dataclass): it prints, pickles and compares.
    """

    @property
    def dtype(self) -> str:
        """safetensors dtype name of what ``read`` gives."""
        ...

    @property
    def saved_dtype(self) -> str:
        """The dtype a merge writes unless the recipe names one: ``dtype``, or the model's own for
        values that are computed while reading (dequantized, averaged).
        """
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; () for a 0-d tensor."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files that must be on disk to read it."""
        ...

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, 1-D, in the view's own dtype.

        The result may live in ``scratch`` under ``key`` and is overwritten by the next read
        with the same key. Safe to call from several threads with different scratches.
        """
        ...

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the system that these elements will be read soon. May do nothing."""
        ...


def numel(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape; 1 for a 0-d tensor."""
    return math.prod(shape)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor."""
    return DTYPES[dtype].bytes * numel(shape)


@dataclass(frozen=True)
class Checkpoint:
    """One input with its headers read and none of its weights.

    Args:
        label: how the recipe names it; used in every message.
        root: the folder its weight files are in.
        tensors: name → view, in natural order (numbers inside names compare as numbers).
        config: config.json as raw JSON, or None.
        side_files: every file that is not weights, by relative path, sorted.
        side_root: the folder of the side files if it is not ``root``.
        revision: the hub commit, or None for a local input.
        is_local: whether the reference was a path on this machine.
        fetch: weight files that are not on disk yet: path → (repo id, revision, file name).
        texts: side files that are on no disk (made from a GGUF file, or by an earlier document
            of a chain that has not run yet): name → content.
    """

    label: str
    root: Path
    tensors: Mapping[str, View]
    config: Mapping[str, Any] | None = None
    side_files: tuple[str, ...] = ()
    revision: str | None = None
    is_local: bool = True
    fetch: Mapping[Path, tuple[str, str, str]] = field(default_factory=dict)
    side_root: Path | None = None
    texts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def side_folder(self) -> Path:
        """The folder that ``side_files`` are relative to."""
        return self.side_root or self.root

    def side_file(self, name: str) -> bytes | None:
        """The content of a side file, None if there is none of that name."""
        if name in self.texts:
            return self.texts[name]
        return (self.side_folder / name).read_bytes() if name in self.side_files else None

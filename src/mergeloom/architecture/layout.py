"""What every tensor of a model is: layer, embedding, head, before or after the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mergeloom.architecture.rows import Row, Rows, row_for
from mergeloom.architecture.stacks import (
    NEXT_TOKEN_KEYS,
    Shapes,
    Stack,
    family,
    find_stacks,
    leaves,
    split,
)

HEAD = re.compile(
    r"lm_head|embed_out|output_layer|(^|\.)output\.|vocab_projector|predictions\.decoder|proj_out"
    r"|pred_layer|unembed|head"
)
NOT_HEAD = re.compile(r"embed_tokens|wte|shared|word_emb")
NOT_EMBEDDING = re.compile(
    r"vision|visual|vit|image|audio|speech|pos_embed|position|wpe|token_type|patch|class_embed",
    re.I,
)
EMBEDDING = re.compile(r"emb|wte|shared")
EMBEDDING_SEGMENTS = frozenset(
    """embed_tokens wte tok_embeddings word_embeddings token_embedding embed_in shared embeddings
    embed input_embedding""".split()
)
# A second table of the same vocabulary (gemma-3n's and gemma-4's inputs of every layer).
SECOND_TABLE = re.compile(r"per_layer")
BIAS_ROW = re.compile(r"(^|\.)final_logits_bias$")
PRE = re.compile(
    r"embed|wte|wpe|position|patch|stem|conv1|conv2|emb_norm|emb_ln|token_type|pre_layernorm"
    r"|ln_pre|class_token|mask_token|shared|project_in"
)
POST = re.compile(
    r"(^|\.)(norm|ln_f|norm_f|ln_out|output_norm|final_\w*norm\w*|final_logits_bias|project_out"
    r"|proj_out|hc_head|post_layernorm|pooler|classifier|score|predictions|qa_outputs|generator_\w+|cls)(\.|$)"
    r"|encoder\.ln|(en|de)coder\.layer_norm\.|^(\w+\.)?LayerNorm"
)
POST_FIRST = re.compile(r"embedding_norm")
HEADS = re.compile(r"head|cls\.|predictions|vocab|output|proj_out|logits|decoder\.bias")
BUFFERS = re.compile(
    r"(^|\.)((original_)?inv_freq|(cos|sin)_cached|causal_mask|(attn|attention)\.(masked_)?bias)$"
)
# Kept in float32 by the models that have them, whatever the others' dtype: corrections of routers,
# the decay of state-space models.
OWN_DTYPE = re.compile(
    r"(^|\.)(e_score_correction_bias|expert_bias|A_log|D|dt_bias|time_decay|time_first)$"
)

# Parts between the stacks: whether they come before or after the layers does not matter.
KNOWN_PARTS = re.compile(
    r"projector|merger|connector|projection|vision|visual|vit\.|image|audio|speech|rotary|inv_freq"
)

Role = Literal["layer", "embedding", "head", "pre", "post"]


@dataclass(frozen=True)
class Place:
    """Where a tensor stands. ``stack`` and ``index`` only for layers; ``suffix`` is the rest."""

    role: Role
    stack: Stack | None = None
    index: int = 0
    suffix: str = ""

    @property
    def position(self) -> float:
        """Its place in a gradient: 0 before the layers, 1 after them, i/(n−1) inside."""
        if self.stack is None:
            return 1.0 if self.role in ("head", "post") else 0.0
        return self.index / (self.stack.length - 1) if self.stack.length > 1 else 1.0


@dataclass(frozen=True)
class Layout:
    """The structure of one checkpoint, from names, shapes and config.json alone.

    ``main`` is the stack that ``models`` and ``slices`` mean. ``embeddings`` and ``heads`` are
    names. A model without a head tensor is tied when its config does not say otherwise.
    ``vocabulary`` has every tensor with an axis that counts tokens, with that axis: embeddings,
    further tables of the same vocabulary, heads and their biases. ``row`` is what exceptions state.
    """

    shapes: Shapes
    config: Mapping[str, Any]
    stacks: tuple[Stack, ...]
    main: Stack | None
    embeddings: tuple[str, ...]
    heads: tuple[str, ...]
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    row: Row = field(default_factory=Row)

    @cached_property
    def tied_to(self) -> str | None:
        """The table that a head without a tensor of its own is: a decoder's before the input's."""
        tables = [n for n in self.vocabulary if self.place(n).role == "embedding"]
        own = [n for n in tables if "decoder" in n.split(".") and not SECOND_TABLE.search(n)]
        found = own if len(own) == 1 else self.embeddings
        return found[0] if len(found) == 1 else None

    @cached_property
    def _by_prefix(self) -> dict[str, Stack]:
        return {stack.prefix: stack for stack in self.stacks}

    def place(self, name: str) -> Place:
        """The place of one tensor of this checkpoint."""
        if parts := split(name):
            prefix, index, suffix = parts
            if stack := self._by_prefix.get(prefix):
                return Place("layer", stack, index, suffix)
        if name in self.vocabulary:
            is_head = name in self.heads or len(self.shapes[name]) < 2 or _is_head(name)
            return Place("head" if is_head else "embedding")
        if POST_FIRST.search(name) or is_post(name):
            return Place("post")
        return Place("pre")

    @cached_property
    def unrecognised(self) -> tuple[str, ...]:
        """Tensors that no rule knows: merged by their names like all others, place unknown."""
        stated = tuple(f"{p}." for prefixes in self.row.modules.values() for p in prefixes)
        return tuple(
            name
            for name in self.shapes
            if self.place(name).role == "pre"
            and not PRE.search(name)
            and not KNOWN_PARTS.search(name)
            and not name.startswith(stated)
        )

    @cached_property
    def suffixes(self) -> Mapping[tuple[str, int], tuple[str, ...]]:
        """(stack prefix, layer index) → the suffixes of that layer, in checkpoint order."""
        found: dict[tuple[str, int], list[str]] = {}
        for name in self.shapes:
            place = self.place(name)
            if place.stack:
                found.setdefault((place.stack.prefix, place.index), []).append(place.suffix)
        return {key: tuple(value) for key, value in found.items()}


def understand(shapes: Shapes, config: Mapping[str, Any] | None, rows: Rows = ()) -> Layout:
    """The layout of a checkpoint.

    Args:
        shapes: tensor name → shape, in checkpoint order.
        config: raw config.json, or None for a bare weight file.
        rows: exceptions that the user states, beside the built-in ones.
    """
    config = config or {}
    row = row_for(config, rows)
    stacks = find_stacks(shapes, config, row.stacks)
    loose = [n for n in shapes if not any(n.startswith(f"{s.prefix}.") for s in stacks)]
    candidates = _vocabulary_tensors(loose, shapes, config)
    base = _shared_beginning(stacks)
    heads = [n for n in candidates if _is_head(n)]
    tables = [n for n in candidates if n not in heads and not _is_other(n.removeprefix(base))]
    if named := [n for n in tables if EMBEDDING.search(n)]:
        # One that does not look like an embedding, beside one that does, is the other end.
        heads += [n for n in tables if n not in named and shapes[n] == shapes[named[0]]]
        tables = named
    sideways = [] if heads else _sideways_heads(loose, shapes, tables)
    heads += sideways
    main = _main_stack(stacks, tables, shapes)
    embeddings = _input_tables(tables, main)
    outermost = min((n.count(".") for n in heads), default=0)
    chosen = tuple(n for n in heads if n.count(".") == outermost)
    found = tuple(embeddings) if row.embeddings is None else _present(row.embeddings, shapes)
    chosen = chosen if row.heads is None else _present(row.heads, shapes)
    size = next((shapes[n][0] for n in (*found, *chosen)), 0)
    same = [
        n for n in (*tables, *heads) if n in sideways or abs(shapes[n][0] - size) <= 0.1 * size + 64
    ]
    vocabulary = {n: int(n in sideways) for n in (*same, *found, *chosen)}
    vocabulary |= _vocabulary_biases(loose, shapes, vocabulary)
    vocabulary |= {name: axis for name, axis in row.vocabulary.items() if name in shapes}
    ordered = {name: vocabulary[name] for name in shapes if name in vocabulary}
    return Layout(shapes, config, stacks, main, found, chosen, ordered, row)


def _shared_beginning(stacks: tuple[Stack, ...]) -> str:
    """``model.`` when every stack begins so: a word that all names share tells no part."""
    first = {stack.prefix.partition(".")[0] for stack in stacks}
    return f"{first.pop()}." if len(first) == 1 else ""


def _is_other(name: str) -> bool:
    """Whether a table by its name is one of positions, patches, sounds or types of token."""
    return bool(NOT_EMBEDDING.search(name))


def _input_tables(tables: list[str], main: Stack | None) -> list[str]:
    """Among tables of the vocabulary those that the model's first input goes through.

    An encoder's before its decoder's, the main stack's before those of other parts, what is called
    an embedding of words before other tables.
    """
    found = [n for n in tables if not SECOND_TABLE.search(n)]
    halves = {half for n in found for half in n.split(".") if half in ("encoder", "decoder")}
    if len(halves) == 2:
        return [n for n in found if "encoder" in n.split(".")]
    if main:
        near = max((_common_segments(n, main.prefix) for n in found), default=0)
        found = [n for n in found if _common_segments(n, main.prefix) == near]
    found = [n for n in found if EMBEDDING_SEGMENTS & set(n.split("."))] or found
    outermost = min((n.count(".") for n in found), default=0)
    return [n for n in found if n.count(".") == outermost]


def _sideways_heads(loose: list[str], shapes: Shapes, tables: list[str]) -> list[str]:
    """Heads stored the other way round: one column for each token."""
    rows = {shapes[n][0] for n in tables}
    matrices = [n for n in loose if len(shapes[n]) == 2 and _is_head(n)]
    return [n for n in matrices if shapes[n][1] in rows and shapes[n][0] not in rows]


def _present(names: tuple[str, ...], shapes: Shapes) -> tuple[str, ...]:
    return tuple(name for name in names if name in shapes)


def _vocabulary_biases(
    loose: list[str], shapes: Shapes, tables: Mapping[str, int]
) -> dict[str, int]:
    """Biases with an entry for each token: 1-D ones of a head's length, beside it or above it."""
    rows = {shapes[name][axis] for name, axis in tables.items()}
    found = {}
    for name in loose:
        shape = shapes[name]
        if BIAS_ROW.search(name) and len(shape) == 2 and shape[0] == 1 and shape[1] in rows:
            found[name] = 1
        elif len(shape) == 1 and shape[0] in rows and name.endswith("bias") and HEADS.search(name):
            found[name] = 0
    return found


def is_post(name: str) -> bool:
    """Whether a tensor outside the layers comes after them, by its name."""
    return bool(POST.search(name) or (HEAD.search(name) and not NOT_HEAD.search(name))) and not (
        PRE.search(name) and not HEAD.search(name)
    )


def is_buffer(name: str, shape: tuple[int, ...] | None = None) -> bool:
    """Whether a tensor is a constant that models of one kind share: copied, never merged.

    A ``bias`` of attention is a mask when it has an axis for each of (batch, head, row, column).
    """
    is_mask = not name.endswith(".bias") or shape is None or len(shape) == 4
    return is_mask and bool(BUFFERS.search(name))


def has_own_dtype(name: str) -> bool:
    """Whether a tensor keeps the dtype it is stored in when the others are cast."""
    return bool(OWN_DTYPE.search(name))


def _vocabulary_tensors(loose: list[str], shapes: Shapes, config: Mapping[str, Any]) -> list[str]:
    """2-D tensors outside the stacks whose rows are the vocabulary (padded ones by name)."""
    sizes = {v for p, v in leaves(config) if p and p[-1] == "vocab_size" and isinstance(v, int)}
    matrices = [n for n in loose if len(shapes[n]) == 2]
    named = [n for n in matrices if EMBEDDING_SEGMENTS & set(n.split("."))]
    rows = sizes | {shapes[n][0] for n in named if _plausible(shapes[n][0], sizes)}
    found = [n for n in matrices if shapes[n][0] in rows]
    weights = {n for n in found if n.endswith(".weight")}
    return [n for n in found if n in weights or f"{n.rpartition('.')[0]}.weight" not in weights]


def _plausible(rows: int, sizes: set[int]) -> bool:
    """Whether a table can belong to a vocabulary size: it may be padded."""
    return not sizes or any(size <= rows <= 1.1 * size + 64 for size in sizes)


def _is_head(name: str) -> bool:
    return bool(HEAD.search(name)) and not NOT_HEAD.search(name)


def _common_segments(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def _main_stack(stacks: tuple[Stack, ...], embeddings: list[str], shapes: Shapes) -> Stack | None:
    """The stack that the input embedding belongs to, else the text one, else the largest."""
    counted = [s for s in stacks if s.count_key and s.count_key[-1] not in NEXT_TOKEN_KEYS]
    candidates = counted or list(stacks)
    if not candidates:
        return None

    def rank(stack: Stack) -> tuple[int, bool, bool, int]:
        depth = stack.prefix.count(".") + 1
        far = min((depth - _common_segments(n, stack.prefix) for n in embeddings), default=0)
        size = sum(math.prod(s) for n, s in shapes.items() if n.startswith(f"{stack.prefix}."))
        return -far, family(stack.prefix) == "text", "decoder" in stack.prefix, size

    return max(candidates, key=rank)

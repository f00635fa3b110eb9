"""The ways in which one layer's tensors are written, as rows of data.

Checkpoints of one model differ in how they call the parts of a layer, and in whether they keep
projections or experts apart or packed into one tensor. What transformers 4 and 5, vLLM and the
fine-tuning programs write is covered by the tables here. Add a row to cover more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from mergeloom.architecture.sources import Pack
from mergeloom.architecture.stacks import leaves

SPELLINGS: tuple[tuple[str, str], ...] = (
    (
        r"(?:^|(?<=\.))block_sparse_moe\.e_score_correction_bias$",
        "mlp.gate.e_score_correction_bias",
    ),
    (r"(?:^|(?<=\.))block_sparse_moe(?=\.)", "mlp"),
    (r"(?<=experts\.)(\d+)\.w1(?=\.)", r"\1.gate_proj"),
    (r"(?<=experts\.)(\d+)\.w3(?=\.)", r"\1.up_proj"),
    (r"(?<=experts\.)(\d+)\.w2(?=\.)", r"\1.down_proj"),
)
"""(pattern in the name inside of a layer, the spelling that stands for all)."""


@dataclass(frozen=True)
class Packing:
    """The tensor ``whole`` holds ``parts``, first to last; a ``*`` in them counts the experts."""

    whole: str
    parts: tuple[str, ...]

    @property
    def is_stacked(self) -> bool:
        """Whether it holds all experts."""
        return "*" in self.parts[0]


PACKINGS: tuple[Packing, ...] = (
    Packing("experts.gate_up_proj", ("experts.*.gate_proj.weight", "experts.*.up_proj.weight")),
    Packing("experts.gate_up_proj_bias", ("experts.*.gate_proj.bias", "experts.*.up_proj.bias")),
    Packing("experts.down_proj", ("experts.*.down_proj.weight",)),
    Packing("experts.down_proj_bias", ("experts.*.down_proj.bias",)),
    Packing("experts.up_proj", ("experts.*.up_proj.weight",)),
    Packing("qkv_proj.weight", ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
    Packing("qkv_proj.bias", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
    Packing("in_proj_weight", ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
    Packing("in_proj_bias", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
    Packing("gate_up_proj.weight", ("gate_proj.weight", "up_proj.weight")),
    Packing("gate_up_proj.bias", ("gate_proj.bias", "up_proj.bias")),
)

STACKED = tuple(packing.whole for packing in PACKINGS if packing.is_stacked)
"""How the names of packed experts end."""

TRANSPOSED_EXPERTS = frozenset(
    "aria aria_text gpt_oss llama4 llama4_text qwen3_vl_moe qwen3_vl_moe_text".split()
)
"""model_types whose packed experts are (experts, columns, rows). Shapes tell where they can."""

INTERLEAVED_EXPERTS = frozenset(["gpt_oss"])
"""model_types whose gate and up rows alternate."""


@lru_cache(maxsize=1 << 16)
def canonical(suffix: str) -> str:
    """The one spelling of a name inside of a layer."""
    for pattern, spelling in SPELLINGS:
        suffix = re.sub(pattern, spelling, suffix)
    return suffix


@lru_cache(maxsize=1 << 16)
def as_whole(suffix: str) -> tuple[tuple[Packing, str], ...]:
    """(row, what stands before it) for the rows whose packed tensor ``suffix`` is."""
    return tuple(
        (packing, suffix[: len(suffix) - len(packing.whole)])
        for packing in PACKINGS
        if suffix == packing.whole or suffix.endswith(f".{packing.whole}")
    )


@lru_cache(maxsize=1 << 16)
def as_part(suffix: str) -> tuple[tuple[Packing, str, int, int], ...]:
    """(row, what stands before it, number of the part, expert) for the rows it is a part of."""
    found = []
    for packing in PACKINGS:
        for number, part in enumerate(packing.parts):
            pattern = re.escape(part).replace(r"\*", r"(\d+)")
            if match := re.search(rf"(?:^|(?<=\.)){pattern}$", suffix):
                expert = int(match[1]) if packing.is_stacked else 0
                found.append((packing, suffix[: match.start()], number, expert))
    return tuple(found)


def normal(suffix: str) -> str:
    """A name under which all ways to write a layer look alike."""
    spelled = canonical(suffix)
    for packing, before, _, _ in as_part(spelled):
        return before + packing.whole
    return spelled


@lru_cache(maxsize=1 << 12)
def pack_of(
    kinds: frozenset[str],
    shape: tuple[int, ...],
    rows: tuple[int, ...],
    columns: int | None,
    experts: int | None,
) -> Pack | None:
    """How parts lie in a packed tensor of a model, by its shape; None if they do not fit.

    ``kinds`` are the model's and its parts' model_type.
    """
    is_interleaved = bool(kinds & INTERLEAVED_EXPERTS) and experts is not None
    if is_interleaved and len(set(rows)) > 1:
        return None
    straight = Pack(rows, columns, experts, interleaved=is_interleaved)
    found = [straight]
    if columns is not None and experts is not None:
        turned = replace(straight, transposed=True)
        found = [turned, straight] if kinds & TRANSPOSED_EXPERTS else [straight, turned]
    return next((pack for pack in found if pack.shape == shape), None)


def repacking(
    suffix: str,
    ours: tuple[int, ...],
    theirs: tuple[int, ...],
    kinds: tuple[frozenset[str], frozenset[str]],
) -> tuple[Pack, Pack] | None:
    """How the packed experts of two models lie; None if in the same way, or not comparable.

    ``kinds`` are the model_types of the two, as for :func:`pack_of`.
    """
    packing = next((found for found, _ in as_whole(suffix) if found.is_stacked), None)
    is_swapped = len(ours) == 3 and ours == (*theirs[:-2], *theirs[:-3:-1])
    if packing is None or len(ours) not in (2, 3) or (ours != theirs and not is_swapped):
        return None
    turned = [len(ours) == 3 and bool(kind & TRANSPOSED_EXPERTS) for kind in kinds]
    alternate = [bool(kind & INTERLEAVED_EXPERTS) for kind in kinds]
    if ours != theirs and turned[0] == turned[1]:
        turned = [False, True]  # which of the two does not matter
    if ours == theirs and ours[-1] != ours[-2]:
        turned = [any(turned)] * 2
    total, count = ours[2] if turned[0] else ours[1], len(packing.parts)
    if (turned[0], alternate[0]) == (turned[1], alternate[1]) or total % count:
        return None
    columns = None if len(ours) == 2 else ours[1] if turned[0] else ours[2]
    rows = (total // count,) * count
    one, two = (
        Pack(rows, columns, ours[0], is_turned, is_alternate)
        for is_turned, is_alternate in zip(turned, alternate, strict=True)
    )
    return one, two


def model_types(config: Mapping[str, Any]) -> frozenset[str]:
    """The model_type of a config and of its parts."""
    return frozenset(str(value) for path, value in leaves(config) if path[-1:] == ("model_type",))

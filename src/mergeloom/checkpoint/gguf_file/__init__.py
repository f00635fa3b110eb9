"""GGUF files as models: tensors under transformers' names, config.json and tokenizer."""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.checkpoint.folder import GGUF_PART
from mergeloom.checkpoint.gguf_file.families import (
    FAMILIES,
    NOT_WEIGHTS,
    Family,
    config_of,
    interleaved_heads,
    lacking,
    model_name,
)
from mergeloom.checkpoint.gguf_file.header import Entry, Header, read_header
from mergeloom.checkpoint.gguf_file.tensor import GgufTensor
from mergeloom.checkpoint.gguf_file.tokenizer import tokenizer_files
from mergeloom.checkpoint.open_files import read_into
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.weights import in_natural_order
from mergeloom.errors import listing
from mergeloom.types import DTYPES, View

if TYPE_CHECKING:
    import gguf

__all__ = ["GgufModel", "GgufTensor", "open_gguf"]

_FLOATS = {0: "F32", 1: "F16", 30: "BF16"}  # by ggml's numbers


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file, or the parts of a split one.

    Args:
        tensors: by transformers' names, in natural order.
        config: config.json.
        texts: tokenizer files by name.
    """

    tensors: Mapping[str, View]
    config: Mapping[str, Any]
    texts: Mapping[str, bytes] = field(default_factory=dict)


def open_gguf(
    path: Path, shown: str, report: Report, *, with_tokenizer: bool = True
) -> GgufModel | None:
    """Read the headers of a GGUF file and of the files it is split into.

    Args:
        path: the file, or the first of a split model.
        shown: how messages call it.
        report: receives every mistake.
        with_tokenizer: make tokenizer files too, which takes seconds.
    """
    if importlib.util.find_spec("gguf") is None:
        report.error(
            f"{shown} is a GGUF file, and the gguf library that reads it is not installed",
            "Install mergeloom[gguf]",
        )
        return None
    headers = _headers(path, shown, report)
    if headers is None:
        return None
    first = next(iter(headers.values()))
    whole = Header(first.metadata, {n: e for h in headers.values() for n, e in h.tensors.items()})
    architecture = first.text("general.architecture")
    family = FAMILIES.get(architecture)
    if family is None:
        report.error(
            f"{shown} is a GGUF file of the architecture {architecture[:80] or '(none)'}; those "
            f"that can be read are {', '.join(FAMILIES)}",
            "Use the model in transformers' format",
        )
        return None
    if missing := lacking(whole, architecture):
        report.error(f"{shown} does not state {listing(missing)}", "It is no complete model")
        return None
    reading = _Reading(family, whole, _own_dtype(whole), shown, report)
    tensors = _tensors(reading, headers)
    if tensors is None:
        return None
    factors = _factors(headers)
    config = config_of(family, whole, DTYPES[reading.dtype].torch_name, factors)
    if factors and "rope_scaling" not in config:
        report.warn(
            f"{shown} has factors for its rotary frequencies that config.json has no words for",
            "Give a model in transformers' format as base_model",
        )
    kinds = dict.fromkeys(view.kind for view in tensors.values())
    report.warn(f"{shown} is GGUF ({', '.join(kinds)}); dequantizing it while reading")
    has_tokenizer = bool(whole.text("tokenizer.ggml.model"))
    texts = tokenizer_files(path, shown, report) if with_tokenizer and has_tokenizer else {}
    return GgufModel(tensors, config, texts)


@dataclass(frozen=True)
class _Reading:
    """What every tensor of a file needs to be understood."""

    family: Family
    whole: Header
    dtype: str
    shown: str
    report: Report


def _headers(path: Path, shown: str, report: Report) -> dict[Path, Header] | None:
    """The header of every part, the first one's first."""
    paths = [path]
    if split := GGUF_PART.fullmatch(path.name):
        count = int(split["count"])
        if int(split["number"]) != 1 or not 0 < count < 10_000:
            report.error(f"{shown} is a part of a split model", "Name its first part, -00001-of-")
            return None
        stem = split["stem"]
        paths = [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
        if absent := [p.name for p in paths if not p.is_file()]:
            report.error(
                f"{shown}: {len(absent)} of {count} parts are missing: {listing(absent)}",
                "Download what is missing",
            )
            return None
    found: dict[Path, Header] = {}
    for part in paths:
        header = read_header(part, shown if part == path else f"{part}", report)
        if header is None:
            return None
        found[part] = header
    return found


def _tensors(reading: _Reading, headers: Mapping[Path, Header]) -> dict[str, GgufTensor] | None:
    """Views by transformers' names in natural order; None after a mistake."""
    shown, report = reading.shown, reading.report
    tensors: dict[str, GgufTensor] = {}
    unknown: list[str] = []
    for part, header in headers.items():
        size = part.stat().st_size
        for name, entry in header.tensors.items():
            if name in NOT_WEIGHTS:
                continue
            renamed = model_name(reading.family, name)
            if renamed is None:
                unknown.append(name)
                continue
            view = _tensor(reading, part, name, entry, size)
            if view is None:
                return None
            tensors[renamed] = view
    if unknown:
        report.error(
            f"{shown} has {len(unknown)} tensors that its architecture does not have here: "
            f"{listing(unknown, 5)}",
            "Use the model in transformers' format",
        )
        return None
    if not tensors:
        report.error(f"{shown} holds no tensors")
        return None
    return in_natural_order(tensors)


def _tensor(reading: _Reading, path: Path, name: str, entry: Entry, size: int) -> GgufTensor | None:
    """One tensor's view, or None after saying what is wrong with it."""
    import gguf

    where = f"{reading.shown}: tensor {name[:200]}"
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        in_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        reading.report.error(f"{where} is of the unknown type {entry.kind}")
        return None
    if not _is_read(kind, block_bytes):
        reading.report.error(f"{where} is {kind.name}, which the gguf library does not dequantize")
        return None
    columns = entry.shape[-1] if entry.shape else 1
    rows = math.prod(entry.shape[:-1])
    heads = interleaved_heads(reading.family, reading.whole, name)
    if columns % in_block or (heads and rows % (2 * heads)):
        of_heads = f" and {heads} heads" if heads else ""
        reading.report.error(
            f"{where} has the impossible shape {list(entry.shape)} for {kind.name}{of_heads}"
        )
        return None
    row_bytes = columns // in_block * block_bytes
    end = entry.offset + rows * row_bytes
    if end > size:
        reading.report.error(
            f"{where} ends at byte {end:,}, and {path.name} has {size:,}", "Download it again"
        )
        return None
    shift = reading.family.norm_shift if name.endswith("norm.weight") else 0.0
    return GgufTensor(
        path, entry.offset, kind.name, row_bytes, entry.shape, reading.dtype, heads, shift
    )


def _is_read(kind: gguf.GGMLQuantizationType, block_bytes: int) -> bool:
    """Whether the library can dequantize a format: asked with one block of zeros."""
    import gguf
    import numpy as np

    with np.errstate(all="ignore"):
        try:
            gguf.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
        except NotImplementedError:
            return False
    return True


def _own_dtype(header: Header) -> str:
    """What the model is in: the dtype of its matrices if all are the same floats, else BF16."""
    kinds = {entry.kind for entry in header.tensors.values() if len(entry.shape) > 1}
    return _FLOATS.get(kinds.pop(), "BF16") if len(kinds) == 1 else "BF16"


def _factors(headers: Mapping[Path, Header]) -> Sequence[float]:
    """The content of ``rope_freqs.weight``: a float32 for each pair of a head's dimensions."""
    for path, header in headers.items():
        entry = header.tensors.get(NOT_WEIGHTS[0])
        if entry is not None and entry.kind == 0 and len(entry.shape) == 1:
            count = min(entry.shape[0], 1 << 12)
            stored = bytearray(4 * count)
            read_into(path, entry.offset, memoryview(stored))
            return struct.unpack(f"<{count}f", stored)
    return ()

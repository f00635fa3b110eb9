"""The header of a safetensors file, checked before anything believes it."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.views import StoredTensor
from mergeloom.errors import listing
from mergeloom.json_text import parse_json
from mergeloom.types import DTYPES

MAX_HEADER = 100_000_000
"""The format's own limit for the JSON in front of the data."""

_MAX_INT = 2**63 - 1
_MAX_DIMENSIONS = 64  # torch's own limit; the product of more numbers could take for ever
_DAMAGED = "It is damaged: download it again"


def read_header(path: Path, shown: str, report: Report) -> dict[str, StoredTensor] | None:
    """Read the header of a file on disk.

    Args:
        path: the file.
        shown: how messages call it.
        report: receives every mistake; None is returned if there was one.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(min(size, 1024))
            length = header_length(start, size, shown, report)
            if length is None:
                return None
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        report.error(f"{shown} cannot be read: {error.strerror or error}")
        return None
    return parse_header(header, size, path, shown, report)


def header_length(start: bytes, size: int, shown: str, report: Report) -> int | None:
    """Length of the JSON header, from the first bytes (at least 200) and the size of the file."""
    if lfs_pointer(start, size, shown, report):
        return None
    if size < 8:
        what = "is empty" if size == 0 else f"has only {size} bytes"
        report.error(f"{shown} {what}, which is no safetensors file", _DAMAGED)
        return None
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        report.error(
            f"{shown} is not a safetensors file: it would have a header of {length:,} bytes, and "
            f"the most is {MAX_HEADER:,}",
            _DAMAGED,
        )
        return None
    if 8 + length > size:
        report.error(
            f"{shown} is truncated: its header alone needs {8 + length:,} bytes, the file has "
            f"{size:,}",
            "Download it again",
        )
        return None
    return length


def is_lfs_pointer(start: bytes, size: int) -> bool:
    """Whether a file that begins with ``start`` is git-lfs's note of where the real one is."""
    return size <= 1024 and start.startswith(b"version https://git-lfs")


def lfs_pointer(start: bytes, size: int, shown: str, report: Report) -> bool:
    """The same, reported if so."""
    if not is_lfs_pointer(start, size):
        return False
    report.error(f"{shown} is a git-lfs pointer ({size} bytes): run git lfs pull")
    return True


def parse_header(
    header: bytes, size: int, path: Path, shown: str, report: Report
) -> dict[str, StoredTensor] | None:
    """Turn the JSON of a header into views, or report all that is wrong with it.

    Args:
        header: the JSON bytes, without the eight bytes of length before them.
        size: of the whole file in bytes.
        path: where the file is, or will be once it is downloaded.
        shown: how messages call it.
        report: receives the mistakes.
    """
    entries = _parse_json(header, shown, report)
    if entries is None:
        return None
    start = 8 + len(header)
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    wrong: list[str] = []
    for name, entry in entries.items():
        mistake = _mistake(entry) if _is_text(name) else "has a name that is not Unicode"
        if mistake:
            wrong.append(f"tensor {_short(name)} {mistake}")
            continue
        begin, end = entry["data_offsets"]
        spans.append((begin, end, name))
        tensors[name] = StoredTensor(path, start + begin, entry["dtype"], tuple(entry["shape"]))
    if wrong:
        for text in wrong[:5]:
            report.error(f"{shown}: {text}")
        if len(wrong) > 5:
            report.error(f"{shown}: {len(wrong) - 5} more tensors with mistakes")
        return None
    return tensors if _covers(spans, size - start, size, shown, report) else None


def _parse_json(header: bytes, shown: str, report: Report) -> dict[str, Any] | None:
    """The tensors' entries, without ``__metadata__``."""
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            duplicates.extend(_repeated(key for key, _ in pairs))
        return found

    try:
        entries = parse_json(header.decode("utf-8"), unique)
    except ValueError as error:
        report.error(f"{shown} has a header that is not JSON ({error})", _DAMAGED)
        return None
    if not isinstance(entries, dict):
        report.error(f"{shown} has a header that is not a JSON object", _DAMAGED)
        return None
    if duplicates:
        names = listing(map(_short, duplicates))
        report.error(f"{shown} names the same key twice in its header: {names}")
        return None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        report.error(f"{shown} has a __metadata__ that is not an object of strings")
        return None
    return entries


def _repeated(keys: Iterable[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _mistake(entry: object) -> str:
    """What is wrong with one tensor's entry, or an empty text."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "has no dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"has the unknown dtype {_short(dtype)} (known: {', '.join(DTYPES)})"
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        return f"has the impossible shape {_short(shape)}"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has the impossible data_offsets {_short(offsets)}"
    wanted, found = math.prod(shape) * DTYPES[dtype].bytes, offsets[1] - offsets[0]
    if wanted != found:
        wanted_text = f"{wanted:,}" if wanted <= _MAX_INT else "far more"
        return f"of shape {_short(shape)} in {dtype} needs {wanted_text} bytes and has {found:,}"
    return ""


def _is_text(name: str) -> bool:
    """Whether it can be written down: JSON can spell half of a surrogate pair."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _are_sizes(value: object) -> bool:
    """Whether it is a list of integers that a file can hold. JSON's true and 1.0 are not."""
    if not isinstance(value, list):
        return False
    # A plain loop, because this runs twice for every tensor of every input.
    for number in value:  # noqa: SIM110
        if type(number) is not int or not 0 <= number <= _MAX_INT:
            return False
    return True


def _short(value: object) -> str:
    """``value`` as JSON, cut: a hostile header must not fill the screen."""
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value[:8]))}{', …' if len(value) > 8 else ''}]"
    if isinstance(value, dict):
        return "{…}"
    if type(value) is int and abs(value) > 10**40:
        return "(a huge number)"
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _covers(
    spans: list[tuple[int, int, str]], available: int, size: int, shown: str, report: Report
) -> bool:
    """Whether the tensors fill the data without gap or overlap, as the format demands."""
    spans.sort()
    claimed = max((end for _, end, _ in spans), default=0)
    if claimed > available:
        report.error(
            f"{shown} is truncated: its header promises {size - available + claimed:,} bytes, the "
            f"file has {size:,}",
            "Download it again",
        )
        return False
    position, previous = 0, ""
    for begin, end, name in spans:
        if begin < position:
            report.error(f"{shown}: tensors {_short(previous)} and {_short(name)} overlap")
            return False
        if begin > position:
            report.error(
                f"{shown}: {begin - position:,} bytes before tensor {_short(name)} belong to none"
            )
            return False
        position, previous = end, name
    if claimed < available:
        report.error(
            f"{shown} has {available - claimed:,} bytes after its last tensor that belong to none",
            _DAMAGED,
        )
        return False
    return True

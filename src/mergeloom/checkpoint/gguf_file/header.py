"""The header of a GGUF file: metadata and where the tensors are, checked before it is believed.

Read here and not with the gguf library, which takes seconds for a vocabulary and follows whatever
counts a damaged file states.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeloom.checkpoint.report import Report

Value = str | int | float | bool | tuple[int | float | bool, ...]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
"""Types of metadata values → their struct formats."""

_STRING, _ARRAY = 8, 9
_MOST_ELEMENTS = 1 << 24
_LONGEST_LIST = 1 << 12
_LONGEST_NAME = 1 << 10
_MOST_TENSORS = 1 << 20
_AGAIN = "It is damaged: download it again"


@dataclass(frozen=True)
class Entry:
    """One tensor: ggml's number of its type, row-major shape, bytes from the file's start."""

    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """What stands before the data. Lists of texts and long lists of numbers are left out."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, Entry]

    def text(self, key: str) -> str:
        """A text of the metadata, empty if there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | float | None:
        """A finite number of the metadata."""
        value = self.metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value if math.isfinite(value) else None


class _DamagedError(Exception):
    """What is wrong, in words that follow the file's name."""


def read_header(path: Path, shown: str, report: Report) -> Header | None:
    """Read a file's header; None after reporting what is wrong with it."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise _DamagedError("is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(data).header()
    except OSError as error:
        report.error(f"{shown} cannot be read: {error.strerror or error}")
    except _DamagedError as error:
        report.error(f"{shown} {error}", _AGAIN)
    return None


class _Parser:
    """A place in the file that moves forward; every step is checked against the file's end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0
        self.elements = 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise _DamagedError("is no GGUF file")
        self.place = 4
        (version,) = self.numbers("I", 1)
        if version not in (2, 3):
            order = "big-endian" if version in (2 << 24, 3 << 24) else f"of version {version}"
            raise _DamagedError(f"is a GGUF file {order}; versions 2 and 3 are read")
        tensors, values = self.numbers("Q", 2)
        if max(tensors, values) > _MOST_TENSORS:
            raise _DamagedError(f"states {tensors:,} tensors and {values:,} values")
        metadata: dict[str, Value] = {}
        for _ in range(int(values)):
            key = self.text(_LONGEST_NAME)
            value = self.value()
            if value is not None:
                metadata[key] = value
        infos = [self.info() for _ in range(int(tensors))]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _DamagedError("has an impossible general.alignment")
        start = -(-self.place // alignment) * alignment
        found = {name: Entry(kind, shape, start + offset) for name, kind, shape, offset in infos}
        if len(found) < len(infos):
            raise _DamagedError("names the same tensor twice")
        return Header(metadata, found)

    def take(self, size: int) -> int:
        """The place of the next ``size`` bytes."""
        if size > len(self.data) - self.place:
            raise _DamagedError("is truncated: its header does not end")
        before, self.place = self.place, self.place + size
        return before

    def numbers(self, kind: str, count: int) -> tuple[int | float | bool, ...]:
        size = struct.calcsize(f"<{kind}")
        start = self.take(size * count)
        return struct.unpack_from(f"<{count}{kind}", self.data, start)

    def whole(self, kind: str) -> int:
        return int(self.numbers(kind, 1)[0])

    def text(self, longest: int) -> str:
        length = self.whole("Q")
        if length > longest:
            raise _DamagedError(f"has a text of {length:,} bytes where at most {longest:,} belong")
        start = self.take(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise _DamagedError("has a text that is not UTF-8") from error

    def value(self) -> Value | None:
        kind = self.whole("I")
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind], 1)[0]
        if kind == _STRING:
            return self.text(1 << 24)
        if kind != _ARRAY:
            raise _DamagedError(f"has a value of the unknown type {kind}")
        inner, count = self.whole("I"), self.whole("Q")
        self.elements += count
        if self.elements > _MOST_ELEMENTS:
            raise _DamagedError(f"has lists of more than {_MOST_ELEMENTS:,} values")
        if inner == _STRING:
            for _ in range(count):
                self.take(self.whole("Q"))
            return None
        if inner not in _NUMBERS:
            raise _DamagedError(f"has a list of the unknown type {inner}")
        if count > _LONGEST_LIST:
            self.take(struct.calcsize(f"<{_NUMBERS[inner]}") * count)
            return None
        return self.numbers(_NUMBERS[inner], count)

    def info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.text(_LONGEST_NAME)
        dimensions = self.whole("I")
        if dimensions > 4:
            raise _DamagedError(f"has a tensor of {dimensions} dimensions")
        shape = tuple(int(n) for n in reversed(self.numbers("Q", dimensions)))
        kind, offset = self.whole("I"), self.whole("Q")
        if math.prod(shape) > 1 << 48 or 0 in shape or offset > 1 << 60:
            raise _DamagedError(f"has a tensor of the impossible shape {list(shape)[:4]}")
        return name, kind, shape, offset

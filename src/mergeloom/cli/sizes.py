"""Sizes and paths as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "B": 10**9}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?)B?|(B)|)\s*$", re.I)


def parse_size(text: str) -> int:
    """Bytes of ``5GB``, ``5GiB``, ``512M``, ``1000`` and the peers' ``5B`` (5 billion).

    Raises ValueError for anything else and for sizes below one byte.
    """
    found = _SIZE.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a size; write 5GB, 5GiB, 500MB or a number of bytes")
    number, unit, binary, billions = found.groups()
    unit = (unit or billions or "").upper()
    factor = 1024 ** "KMGT".index(unit) * 1024 if binary else _UNITS[unit]
    size = int(float(number) * factor)
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return size


def show_size(count: float) -> str:
    """A count of bytes in decimal units, as shard sizes and disks are given."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


class UserPath(click.Path):
    """A path in which ``~`` is the home folder also where no shell has seen it (a notebook)."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A Path."""
        return super().convert(os.path.expanduser(value), param, ctx)


class Size(click.ParamType[int]):
    """A click parameter in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, or a usage error."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)

"""Whether the compiled library is there, and what it knows. Imports no numpy: a plan asks it."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

KINDS = {"F32": 0, "BF16": 1, "F16": 2, "BOOL": 3}
"""The formats that tiles load, by their safetensors names; all but BOOL are stored too."""

STORED = frozenset(kind for kind in KINDS if kind != "BOOL")
READS = hasattr(os, "pread")
"""Whether programs can read, as they can wherever files have positioned reads."""

CHUNK = 1 << 16
"""Elements that are read at once."""

_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
LIBRARY = Path(__file__).parent / f"_tiles.{_SUFFIX}"


@functools.cache
def loaded() -> ctypes.CDLL | str:
    """The compiled library, or why there is none. Calls give up Python's lock."""
    if sys.byteorder != "little":
        return "it is only made for little-endian processors"
    if not LIBRARY.exists():
        return "it was not compiled when mergeloom was installed"
    sources = LIBRARY.parent.glob("*.[ch]")  # there are some in a clone only
    if max((file.stat().st_mtime for file in sources), default=0) > LIBRARY.stat().st_mtime:
        return "it is older than its C files"
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return str(error)


def why_missing() -> str | None:
    """Why torch has to do the work of the library; None where it is there."""
    library = loaded()
    return library if isinstance(library, str) else None

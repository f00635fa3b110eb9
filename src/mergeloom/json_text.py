"""JSON that comes from strangers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def parse_json(
    text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """The value of a JSON text.

    Args:
        text: the text, or its bytes.
        pairs: makes an object of its keys and values; a dict by default.

    Raises:
        ValueError: it is not JSON, not text, or nested more deeply than Python follows.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_kind(value: object) -> str:
    """What JSON calls a value that was read from it."""
    kinds = {list: "list", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")

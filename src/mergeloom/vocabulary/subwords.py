"""Splitting a token's text with a model's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeloom.vocabulary.tokenizer import Tokenizer


class Subwords:
    """The pieces into which each model's tokenizer splits a text, as ids."""

    def __init__(self, tokenizers: Sequence[Tokenizer]) -> None:
        self._tokenizers = tokenizers
        self._loaded: dict[int, Any] = {}

    def __call__(self, model: int, token: str) -> tuple[int, ...]:
        """Ids of the pieces; empty when nothing is left of the text."""
        if model not in self._loaded:
            from tokenizers import Tokenizer as Fast

            document = self._tokenizers[model].document
            self._loaded[model] = Fast.from_str(json.dumps(document))
        ids = self._loaded[model].encode(_as_text(token), add_special_tokens=False).ids
        return tuple(ids)


def _as_text(token: str) -> str:
    """The text that a vocabulary entry stands for: word-start marks are spaces."""
    return token.replace("▁", " ").replace("Ġ", " ")

"""Reading and comparing vocabularies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mergeloom.errors import CheckpointError, Problem
from mergeloom.types import Checkpoint


class Vocabulary:
    """The tokens of one ``tokenizer.json``; parsed only when two files differ."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self._raw = content
        self.digest = hashlib.sha256(self._raw).hexdigest()

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token text → id, added tokens included."""
        try:
            content = json.loads(self._raw)
        except ValueError as error:
            raise CheckpointError(Problem(str(self.path), f"is not valid JSON: {error}")) from None
        try:
            ids = _model_tokens(content["model"].get("vocab") or {})
            ids |= {str(t["content"]): int(t["id"]) for t in content.get("added_tokens") or ()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(
                Problem(
                    str(self.path),
                    "has no vocabulary of tokens and ids where a tokenizer.json has one",
                    "Download it again, or remove it to merge without a tokenizer.",
                )
            ) from None
        return ids

    def same(self, other: Vocabulary) -> bool:
        """Whether both map the same tokens to the same ids."""
        return self.digest == other.digest or self.ids == other.ids

    def conflicts(self, other: Vocabulary) -> int:
        """How many ids both use for different tokens."""
        if self.digest == other.digest:
            return 0
        theirs = {i: token for token, i in other.ids.items()}
        return sum(theirs.get(i, token) != token for token, i in self.ids.items())

    def shared(self, other: Vocabulary) -> int:
        """How many tokens both know, whatever their ids."""
        return len(self.ids.keys() & other.ids.keys())


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """The vocabulary of an input, or None when it has no ``tokenizer.json``."""
    content = checkpoint.side_file("tokenizer.json")
    return Vocabulary(checkpoint.side_folder / "tokenizer.json", content) if content else None


def _model_tokens(vocabulary: Any) -> dict[str, int]:
    """Token → id of a BPE or WordPiece mapping, or of a Unigram list of [piece, score]."""
    if isinstance(vocabulary, Mapping):
        return {str(token): int(i) for token, i in vocabulary.items()}
    return {str(piece[0]): i for i, piece in enumerate(vocabulary)}

"""One input's tokenizer, read from its side files and parsed only when something asks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from mergeloom.checkpoint import is_lfs_pointer
from mergeloom.errors import CheckpointError, Problem
from mergeloom.types import Checkpoint

FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_ID = re.compile(rb'"id"\s*:\s*(\d{1,20})')
VOCABULARY_FILES = (
    "tokenizer.model", "tokenizer.model.v3", "spiece.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "spm.model", "source.spm", "target.spm", "vocab.json", "merges.txt",
    "vocab.txt", "vocab.bpe", "tekken.json",
)  # fmt: skip
LARGEST_ID = 2**31 - 1


def is_vocabulary(name: str) -> bool:
    """Whether a file of this name holds the vocabulary of a tokenizer without tokenizer.json."""
    return name in VOCABULARY_FILES or (name.endswith(".tiktoken") and "/" not in name)


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before the tokenizer's model sees the rest."""

    content: str
    id: int
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def flags(self) -> Mapping[str, bool]:
        """The settings that decide what it matches and whether decoding may skip it."""
        return {name: getattr(self, name) for name in FLAGS}

    def entry(self) -> dict[str, Any]:
        """What ``added_tokens`` of a tokenizer.json holds for it."""
        return {"id": self.id, "content": self.content, **self.flags}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """What a model folder says about its tokenizer.

    Args:
        label: how messages name the model.
        where: the file that messages about its content name.
        files: the files that make the vocabulary and those that describe it: name → content.
        digest: of the files that make the vocabulary. Equal digests: the same vocabulary.
        others: names of further files in the folder that hold the same vocabulary.
    """

    label: str
    where: str
    files: Mapping[str, bytes]
    digest: str
    others: tuple[str, ...] = ()

    @cached_property
    def document(self) -> Mapping[str, Any] | None:
        """The parsed tokenizer.json, made by transformers if the model has other files only.

        None for the few tokenizers that are Python code and fit into no tokenizer.json.
        """
        return self._contents[0]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token text → id in ascending id, added tokens included."""
        document, ids = self._contents
        if document is not None:
            ids = {**dict(_model_tokens(document)), **{t.content: t.id for t in self.added}}
        return MappingProxyType(dict(sorted(ids.items(), key=lambda item: (item[1], item[0]))))

    @cached_property
    def added(self) -> tuple[AddedToken, ...]:
        """The added tokens in ascending id."""
        if self.document is None:
            return ()
        return tuple(sorted(_added_tokens(self.document), key=lambda t: (t.id, t.content)))

    @cached_property
    def kind(self) -> str:
        """``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``; ``Python`` without a document."""
        if self.document is None:
            return "Python"
        model = self.document["model"]
        if stated := model.get("type"):
            return str(stated)
        if "merges" in model:  # files from before the type was written
            return "BPE"
        if not isinstance(model.get("vocab"), Mapping):
            return "Unigram"
        return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The parsed tokenizer_config.json, empty if there is none."""
        return _object(self, "tokenizer_config.json")

    @cached_property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """The parsed special_tokens_map.json, empty if there is none."""
        return _object(self, "special_tokens_map.json")

    def conflicts(self, other: Tokenizer) -> int:
        """How many ids both use for different tokens."""
        if self.digest == other.digest:
            return 0
        theirs = {i: token for token, i in other.ids.items()}
        return sum(theirs.get(i, token) != token for token, i in self.ids.items())

    def shared(self, other: Tokenizer) -> int:
        """How many tokens both know, whatever their ids."""
        return len(self.ids.keys() & other.ids.keys())

    def may_exceed(self, rows: int) -> bool:
        """Whether an added token's id may lie beyond ``rows``, without parsing the file.

        True when in doubt: without a tokenizer.json, or when some number called "id" is so large.
        """
        content = self.files.get("tokenizer.json")
        if content is None:
            return True
        return any(int(found[1]) >= rows for found in _ID.finditer(content))

    @cached_property
    def _contents(self) -> tuple[Mapping[str, Any] | None, Mapping[str, int]]:
        content = self.files.get("tokenizer.json")
        if content is None:
            from mergeloom.vocabulary.convert import converted  # few models need it

            document, ids = converted(self.label, self.files)
            return document, ids
        document = _parsed(self.where, content)
        try:  # every mistake in the vocabulary is found here, and so told in one way
            texts = [token for token, _ in _model_tokens(document)]
            texts += [token.content for token in _added_tokens(document)]
            "".join(texts).encode()  # half a surrogate pair is no text
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise CheckpointError(
                Problem(
                    self.where,
                    "has no vocabulary of tokens and ids where a tokenizer.json has one",
                    "Download it again, or remove it to merge without a tokenizer.",
                )
            ) from None
        return document, {}


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of an input, or None when its folder has no tokenizer files at all.

    Nothing is parsed or converted yet; a mistake in the files is raised as
    :class:`CheckpointError` when their content is first asked for.
    """
    present = sorted({*checkpoint.side_files, *checkpoint.texts})
    others = tuple(name for name in present if is_vocabulary(name))
    names = ["tokenizer.json"] if "tokenizer.json" in present else list(others)
    if not names:
        return None
    describing = [name for name in (*CONFIG_FILES, "config.json") if name in present]
    files = {}
    for name in (*names, *describing):
        content = checkpoint.side_file(name)
        if content is not None:
            files[name] = content
    digest = hashlib.sha256()
    # A tokenizer.json says everything; other files get their added tokens from beside them.
    for name in names if names == ["tokenizer.json"] else sorted(files):
        if name != "config.json":
            digest.update(f"{name}\0{len(files[name])}\0".encode())
            digest.update(files[name])
    where = str(checkpoint.side_folder / names[0])
    return Tokenizer(checkpoint.label, where, MappingProxyType(files), digest.hexdigest(), others)


def _parsed(where: str, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except RecursionError:
        raise CheckpointError(Problem(where, "is nested too deeply to be read")) from None
    except ValueError as error:
        message = f"is not valid JSON: {error}"
        if is_lfs_pointer(content, len(content)):
            message = f"is a git-lfs pointer ({len(content)} bytes): run git lfs pull"
        raise CheckpointError(Problem(where, message)) from None
    if not isinstance(document, dict):
        document = {}  # the vocabulary is then found missing
    return document


def _object(tokenizer: Tokenizer, name: str) -> Mapping[str, Any]:
    content = tokenizer.files.get(name)
    if content is None:
        return {}
    where = tokenizer.where.rpartition("/")[0]
    return _parsed(f"{where}/{name}" if where else name, content)


def _model_tokens(document: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Token and id of a mapping, or of a Unigram list of [piece, score]."""
    model = document["model"]
    vocabulary = model["vocab"]
    if model.get("type") and (model["type"] == "Unigram") is isinstance(vocabulary, Mapping):
        raise TypeError(vocabulary)
    if isinstance(vocabulary, Mapping):
        return ((_text(token), _id(i)) for token, i in vocabulary.items())
    return ((_piece(entry), i) for i, entry in enumerate(vocabulary))


def _added_tokens(document: Mapping[str, Any]) -> Iterator[AddedToken]:
    for token in document.get("added_tokens") or ():
        flags = {name: bool(token.get(name, False)) for name in FLAGS}
        yield AddedToken(_text(token["content"]), _id(token["id"]), **flags)


def _piece(entry: Any) -> str:
    piece, score = entry
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise TypeError(score)
    return _text(piece)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_ID:
        raise ValueError(value)
    return value

"""Editing a tokenizer.json: tokens that go, tokens that come, and where their ids are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mergeloom.vocabulary.tokenizer import AddedToken

ADDED_SCORE = 0.0
"""Score of a Unigram entry that is an added token: those are cut out before scores count."""


def required_tokens(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Tokens the tokenizer cannot work without: the unknown one, those it puts around a text."""
    found = []
    if isinstance(unknown := document["model"].get("unk_token"), str):
        found.append(unknown)
    after = document.get("post_processor")
    parts = after.get("processors", [after]) if isinstance(after, Mapping) else []
    for part in parts:
        if isinstance(part.get("special_tokens"), Mapping):
            found += part["special_tokens"]
        found += [str(part[key][0]) for key in ("sep", "cls") if isinstance(part.get(key), list)]
    return tuple(dict.fromkeys(found))


def without_tokens(document: Mapping[str, Any], dropped: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer.json that does not know the dropped tokens, nor rules that need them."""
    if not dropped:
        return dict(document)
    model = dict(document["model"])
    vocab = model.get("vocab") or {}
    if isinstance(vocab, Mapping):
        model["vocab"] = {t: i for t, i in vocab.items() if t not in dropped}
    else:  # an entry's place is its id, so only the end can go
        end = len(vocab)
        while end and vocab[end - 1][0] in dropped:
            end -= 1
        model["vocab"] = vocab[:end]
    edited = {**document, "model": model}
    edited["added_tokens"] = [
        t for t in document.get("added_tokens") or () if t["content"] not in dropped
    ]
    padding = document.get("padding")
    unpadded = isinstance(padding, Mapping) and padding.get("pad_token")
    if isinstance(unpadded, str) and unpadded in dropped:
        edited["padding"] = None
    return edited


def with_tokens(
    document: Mapping[str, Any],
    regular: Mapping[str, int],
    added: Sequence[AddedToken],
    scores: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """A tokenizer.json with more regular tokens and these added tokens, each at exactly its id.

    The tokenizers library gives an added token that its model does not know the next free number
    after the model's, whatever the file says. Where that would be another id than the file's, the
    added tokens are put into the model's vocabulary too, which the library does follow.

    Args:
        document: the tokenizer.json to start from.
        regular: the tokens to put into its model: token → id.
        added: all added tokens of the result, those it has already among them.
        scores: of the regular tokens, for a Unigram model.

    Raises:
        ValueError: the vocabulary is a list (Unigram) and the ids would leave holes in it.
    """
    ordered = sorted(added, key=lambda t: (t.id, t.content))
    model = dict(document["model"])
    vocab = model.get("vocab") or {}
    entries = list(regular.items())
    extended = _extended(vocab, entries, scores)
    if extended is None or not _numbered_alike(extended, ordered):
        entries += [(token.content, token.id) for token in ordered]
        extended = _extended(vocab, entries, scores)
    if extended is None:
        raise ValueError("the ids of a Unigram vocabulary cannot have holes")
    model["vocab"] = extended
    return {**document, "model": model, "added_tokens": [t.entry() for t in ordered]}


def _numbered_alike(vocab: Any, ordered: Sequence[AddedToken]) -> bool:
    """Whether the library gives each added token the id that it has."""
    is_map = isinstance(vocab, Mapping)
    known = vocab if is_map else {piece[0]: i for i, piece in enumerate(vocab)}
    free = len(vocab)
    for token in ordered:
        given = known.get(token.content)
        if given is None:
            given, free = free, free + 1
        elif given >= len(vocab):
            return False  # a vocabulary with holes: how the library goes on is its own affair
        if given != token.id:
            return False
    return True


def _extended(
    vocab: Any, entries: Sequence[tuple[str, int]], scores: Mapping[str, float]
) -> Any | None:
    """A vocabulary with more entries; None if it is a list and they do not follow its end."""
    if isinstance(vocab, Mapping):
        return {**vocab, **dict(entries)}
    made = list(vocab)
    places = {piece[0]: i for i, piece in enumerate(made)}
    for token, place in sorted(entries, key=lambda entry: entry[1]):
        if places.get(token) == place:
            continue
        if place != len(made):
            return None
        made.append([token, scores.get(token, ADDED_SCORE)])
    return made

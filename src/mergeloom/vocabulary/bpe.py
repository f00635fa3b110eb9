"""Carrying the merge rules of one byte-pair tokenizer over to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.errors import CheckpointError, Problem

Rule = tuple[str, str]
ROUNDS = 4
LONGEST = 24
"""Pieces that still fall into more parts than this are left as they are."""


@dataclass(frozen=True)
class Rules:
    """Merge rules in order of rank, and the new tokens that they do not reach.

    Args:
        rules: the anchor's rules, then those of the others, then the joining ones.
        unreached: pieces that no text gives as one token, in ascending donor order.
    """

    rules: tuple[Rule, ...]
    unreached: tuple[str, ...]


def read_rules(model: Mapping[str, Any], label: str) -> list[Rule]:
    """The ``merges`` of a tokenizer.json, written as ``"a b"`` or as ``["a", "b"]``."""
    listed = model.get("merges") or []
    if not isinstance(listed, list):
        raise CheckpointError(Problem(label, "the merges of its tokenizer.json are no list"))
    rules = []
    for rule in listed:
        parts = rule.split(" ") if isinstance(rule, str) else rule
        if not (isinstance(parts, list) and len(parts) == 2 and _are_texts(parts)):
            raise CheckpointError(
                Problem(label, f"its tokenizer.json has a merge rule that is no pair: {rule!r}")
            )
        rules.append((parts[0], parts[1]))
    return rules


def _are_texts(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, str) for part in parts)


def written_rules(rules: Iterable[Rule], like: Sequence[Any]) -> list[Any]:
    """Rules in the spelling of the list ``like``, or as pairs if a token holds a space."""
    rules = list(rules)
    spelled = bool(like) and isinstance(like[0], str)
    if spelled and not any(" " in part for rule in rules for part in rule):
        return [f"{a} {b}" for a, b in rules]
    return [[a, b] for a, b in rules]


def known_rules(rules: Iterable[Rule], vocab: Mapping[str, int], prefix: str) -> list[Rule]:
    """The rules whose two parts and whose result are tokens of ``vocab``."""
    cut = len(prefix)
    return [(a, b) for a, b in rules if a in vocab and b in vocab and a + b[cut:] in vocab]


def carried_rules(
    vocab: Mapping[str, int],
    anchor: Mapping[str, Any],
    anchor_rules: Sequence[Rule],
    donors: Sequence[tuple[Mapping[str, Any], Sequence[Rule], Sequence[str]]],
) -> Rules:
    """The anchor's rules and then the donors', with joining rules where those are not enough.

    Rules come in order of rank, so a word is cut as the anchor cuts it and only what is left is
    joined by a donor's rules. Where the anchor's pieces straddle those the donor builds a token
    from, none of its rules fits; then the pieces that are there are joined by new rules, as long
    as every step is a token. A rule is only ever added at the end, so no piece that was reached
    before is lost.

    Args:
        vocab: token → id of the output, the donors' regular tokens among them.
        anchor: the ``model`` of the anchor's tokenizer.json.
        anchor_rules: its rules.
        donors: of each other tokenizer its model, its rules, and the tokens that came from it.
    """
    prefix = str(anchor.get("continuing_subword_prefix") or "")
    known = dict.fromkeys(anchor_rules)
    for _, rules, _ in donors:
        known.update(dict.fromkeys(known_rules(rules, vocab, prefix)))
    if prefix or anchor.get("end_of_word_suffix"):
        return Rules(tuple(known), ())  # a piece is then not the text it stands for
    unreached: list[str] = []
    for model, rules, tokens in donors:
        cut = _cut([t for t in tokens if len(t) > 1], vocab, known, anchor)
        # A token that its own tokenizer never produces was never trained: it need not be reached.
        if not model.get("ignore_merges"):
            own = known_rules(rules, model["vocab"], "")
            never = _cut(list(cut), model["vocab"], own, model)
            cut = {piece: parts for piece, parts in cut.items() if piece not in never}
        for _ in range(ROUNDS):
            new = dict.fromkeys(
                rule for p, parts in cut.items() for rule in _joining(p, parts, vocab)
            )  # fmt: skip
            if not new.keys() - known.keys():
                break
            known.update(new)
            cut = _cut(list(cut), vocab, known, anchor)
        unreached += cut
    return Rules(tuple(known), tuple(unreached))


def _cut(
    pieces: Sequence[str],
    vocab: Mapping[str, int],
    rules: Iterable[Rule],
    model: Mapping[str, Any],
) -> dict[str, list[str]]:
    """The pieces that byte-pair merging does not give as one token → the tokens it gives."""
    if not pieces:
        return {}
    from tokenizers.models import BPE

    machine = BPE(
        dict(vocab),
        list(rules),
        fuse_unk=bool(model.get("fuse_unk")),
        byte_fallback=bool(model.get("byte_fallback")),
    )
    cut = {piece: [token.value for token in machine.tokenize(piece)] for piece in pieces}
    return {piece: parts for piece, parts in cut.items() if len(parts) != 1}


def _joining(piece: str, parts: Sequence[str], vocab: Mapping[str, int]) -> tuple[Rule, ...]:
    """Rules that build a piece from its parts through tokens only; () if there is no such way.

    Every run of parts that is a token is built from the first cut into two runs that are tokens.
    """
    count = len(parts)
    if count > LONGEST or "".join(parts) != piece:
        return ()
    built: dict[tuple[int, int], tuple[Rule, ...]] = {(i, i + 1): () for i in range(count)}
    texts = {(i, i + 1): part for i, part in enumerate(parts)}
    for length in range(2, count + 1):
        for start in range(count - length + 1):
            run = (start, start + length)
            text = "".join(parts[start : start + length])
            if text not in vocab:
                continue
            for middle in range(start + 1, start + length):
                a, b = (start, middle), (middle, start + length)
                if a in built and b in built:
                    built[run] = (*built[a], *built[b], (texts[a], texts[b]))
                    texts[run] = text
                    break
    return built.get((0, count), ())

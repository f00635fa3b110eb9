"""The output vocabulary: which tokens the merged model has, at which ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from mergeloom.errors import CheckpointError, Problem, RecipeError, first_few
from mergeloom.types import UnionMode
from mergeloom.vocabulary import bpe, unigram
from mergeloom.vocabulary.document import required_tokens, with_tokens, without_tokens
from mergeloom.vocabulary.pipeline import differences, splits_words
from mergeloom.vocabulary.tokenizer import AddedToken, Tokenizer

OF_THE_RECIPE = -1
"""Stands for the recipe where a token's donor is an index of a tokenizer."""


@dataclass(frozen=True)
class Conflict:
    """An added token that two tokenizers define in different ways.

    Args:
        token: its text.
        kept: label of the model whose definition the output has.
        other: label of the model that says otherwise.
        differs: what is different, as ``flag: kept value, not other value``.
    """

    token: str
    kept: str
    other: str
    differs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.token}: as in {self.kept} ({'; '.join(self.differs)} as in {self.other})"


@dataclass(frozen=True)
class OutputVocabulary:
    """The tokens of the output and its tokenizer.json.

    Args:
        ids: token → output id, ascending.
        source: index of the tokenizer it is based on, the token donor.
        appended: (token, index of the tokenizer it came from, -1 for keys of ``tokens:``), in
            ascending output id.
        document: the new tokenizer.json, None if the donor's files are used unchanged.
        added: the added tokens of the output, in ascending id.
        conflicts: added tokens that the tokenizers define differently.
        dropped: tokens of the donor beyond the embedding rows of every model that has them.
        warnings: sentences for the user.
    """

    ids: Mapping[str, int]
    source: int
    appended: tuple[tuple[str, int], ...] = ()
    document: Mapping[str, Any] | None = None
    added: tuple[AddedToken, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Draft:
    """The vocabulary while it is put together; lives in one call of ``output_vocabulary``."""

    ids: dict[str, int]
    added: dict[str, AddedToken]
    owners: dict[str, int]
    regular: dict[str, int]
    appended: list[tuple[str, int]]
    conflicts: list[Conflict]
    warnings: list[str]
    next_id: int
    promoted: bool = False

    def append(self, token: str, donor: int) -> int:
        """Give a token the next id."""
        place = self.next_id
        self.ids[token] = place
        self.next_id += 1
        self.appended.append((token, donor))
        return place


def output_vocabulary(
    tokenizers: Sequence[Tokenizer],
    rows: Sequence[int],
    source: int | Literal["union"],
    *,
    tokens: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    union_mode: UnionMode = "merge",
    where: str = "tokenizer",
) -> OutputVocabulary:
    """Decide the tokens and ids of the output.

    The tokens of the donor (the first tokenizer for a union) keep their ids. After them come the
    regular tokens of the other models, then their added tokens, each in the order of the models
    and of their ids, then the keys of ``tokens``. A token counts only where it has an embedding
    row: its id in a model is below that model's ``rows``.

    Args:
        tokenizers: of the models, in the order of the recipe, the base first.
        rows: embedding rows of each of them.
        source: index of the tokenizer to take, or ``union``.
        tokens: token → its entry in the recipe (``special: true`` is read here), in file order.
        union_mode: ``merge`` takes regular tokens with their merge rules or scores, ``vocab_only``
            without them, ``added_only`` leaves regular tokens out.
        where: the setting that messages name.

    Raises:
        RecipeError: the tokenizers cannot be united, with a reason for each.
    """
    index = 0 if source == "union" else source
    anchor = tokenizers[index]
    draft, dropped = _start(tokenizers, rows, index, tokens)
    modes: dict[int, UnionMode] = {}
    if source == "union":
        # Equal files have equal tokens at equal ids: there is nothing to take from them.
        others = [i for i, t in enumerate(tokenizers) if t.digest != anchor.digest]
        modes = _modes(tokenizers, rows, others, draft, union_mode, where)
        for i in others:
            if modes[i] != "added_only":
                for token in _regular(tokenizers[i], rows[i]):
                    if token not in draft.ids:
                        draft.regular[token] = draft.append(token, i)
        for i in others:
            _take_added(draft, tokenizers, i, rows[i])
    for token, entry in tokens.items():
        if token not in draft.ids:
            _add_listed(draft, tokenizers, token, entry)
    document = None
    if dropped or draft.appended or draft.promoted:
        document = _document(tokenizers, index, draft, dropped, modes, where)
    return OutputVocabulary(
        ids=MappingProxyType(dict(sorted(draft.ids.items(), key=lambda e: (e[1], e[0])))),
        source=index,
        appended=tuple(draft.appended),
        document=document,
        added=tuple(sorted(draft.added.values(), key=lambda t: (t.id, t.content))),
        conflicts=tuple(draft.conflicts),
        dropped=tuple(dropped),
        warnings=tuple(draft.warnings),
    )


def _start(
    tokenizers: Sequence[Tokenizer],
    rows: Sequence[int],
    index: int,
    tokens: Mapping[str, Any],
) -> tuple[_Draft, dict[str, int]]:
    """The donor's own tokens, and those of them that no model has an embedding row for."""
    anchor, warnings = tokenizers[index], []
    rowless = {
        token: place
        for token, place in anchor.ids.items()
        if place >= rows[index]
        and token not in tokens
        and not any(t.ids.get(token, rows[i]) < rows[i] for i, t in enumerate(tokenizers))
    }
    kept: list[str] = []
    if rowless and anchor.document is not None:
        needed = required_tokens(anchor.document)
        kept = [token for token in rowless if token in needed]
        if anchor.kind == "Unigram":  # a list of pieces: only its end can go
            last = max(
                (i for t, i in anchor.ids.items() if t not in rowless or t in kept), default=-1
            )
            kept = [token for token, i in rowless.items() if i <= last]
    if kept:
        warnings.append(
            f"{anchor.label}: kept, because its tokenizer needs them, although no model has an "
            f"embedding row for them: {_some(kept)}"
        )
    dropped = {token: i for token, i in rowless.items() if token not in kept}
    if dropped:
        warnings.append(
            f"{anchor.label}: left out of the tokenizer, because no model has an embedding row for "
            f"them: {_some(dropped)}"
        )
    ids = {token: i for token, i in anchor.ids.items() if token not in dropped}
    added = {t.content: t for t in anchor.added if t.content not in dropped}
    owners = dict.fromkeys(added, index)
    return _Draft(ids, added, owners, {}, [], [], warnings, _end(ids)), dropped


def _end(ids: Mapping[str, int]) -> int:
    """The first id after all others."""
    return max(ids.values(), default=-1) + 1


def _regular(tokenizer: Tokenizer, rows: int) -> Iterator[str]:
    """Tokens that are not added tokens and have an embedding row, in ascending id."""
    added = {token.content for token in tokenizer.added}
    return (t for t, i in tokenizer.ids.items() if i < rows and t not in added)


def _modes(
    tokenizers: Sequence[Tokenizer],
    rows: Sequence[int],
    others: Sequence[int],
    draft: _Draft,
    wanted: UnionMode,
    where: str,
) -> dict[int, UnionMode]:
    """How the regular tokens of each other tokenizer come in; refuses what cannot be united."""
    anchor, problems = tokenizers[0], []
    modes = dict.fromkeys(others, wanted)
    for i in others:
        theirs = tokenizers[i]
        if wanted == "added_only":
            continue
        new = [token for token in _regular(theirs, rows[i]) if token not in draft.ids]
        if not new:
            continue
        if theirs.kind != anchor.kind or anchor.document is None or theirs.document is None:
            problems.append(
                Problem(
                    where,
                    f"{_some(new)} of {theirs.label} cannot come into the tokenizer of "
                    f"{anchor.label}: {_kinds(anchor, theirs)}",
                    "Write tokenizer: {source: union, union_mode: added_only} to take its added "
                    "tokens only, or choose one model's tokenizer with source.",
                )
            )
            continue
        reasons = differences(anchor.document, theirs.document)
        if reasons and wanted == "merge":
            modes[i] = "added_only"
            draft.warnings.append(
                f"{theirs.label} and {anchor.label} prepare text differently: "
                f"{', '.join(reasons)}; only the added tokens of {theirs.label} are taken, not "
                f"{_some(new)}"
            )
    if problems:
        raise RecipeError(problems)
    return modes


def _kinds(anchor: Tokenizer, theirs: Tokenizer) -> str:
    if theirs.kind == anchor.kind:
        return "neither can be written as a tokenizer.json"
    return f"one is a {theirs.kind} tokenizer, the other {anchor.kind}"


def _take_added(draft: _Draft, tokenizers: Sequence[Tokenizer], donor: int, rows: int) -> None:
    """Append a tokenizer's added tokens; where the token is there already, compare."""
    label = tokenizers[donor].label
    for token in tokenizers[donor].added:
        if token.id >= rows:
            continue
        ours = draft.added.get(token.content)
        if token.content not in draft.ids:
            place = draft.append(token.content, donor)
            draft.added[token.content] = replace(token, id=place)
            draft.owners[token.content] = donor
        elif ours is not None:
            differs = tuple(
                f"{name}: {str(ours.flags[name]).lower()}, not {str(value).lower()}"
                for name, value in token.flags.items()
                if ours.flags[name] is not value
            )
            if differs:
                kept = tokenizers[draft.owners[token.content]].label
                draft.conflicts.append(Conflict(token.content, kept, label, differs))
        elif token.special:  # a marker of a chat template must stay one token
            draft.promoted = True
            draft.added[token.content] = replace(token, id=draft.ids[token.content])
            draft.owners[token.content] = donor
            draft.conflicts.append(
                Conflict(token.content, label, tokenizers[0].label, ("special token, not regular",))
            )


def _add_listed(
    draft: _Draft, tokenizers: Sequence[Tokenizer], token: str, entry: Mapping[str, Any]
) -> None:
    """Append a key of ``tokens:`` as an added token, with the flags a model has for it."""
    place = draft.append(token, OF_THE_RECIPE)
    known = [t for theirs in tokenizers for t in theirs.added if t.content == token]
    made = replace(known[0], id=place) if known else AddedToken(token, place)
    if entry.get("special"):
        made = replace(made, special=True)
    draft.added[token] = made


def _document(
    tokenizers: Sequence[Tokenizer],
    index: int,
    draft: _Draft,
    dropped: Mapping[str, int],
    modes: Mapping[int, UnionMode],
    where: str,
) -> dict[str, Any]:
    """The donor's tokenizer.json with what goes and what comes."""
    anchor = tokenizers[index]
    if anchor.document is None:
        raise RecipeError(
            Problem(
                where,
                f"the tokenizer of {anchor.label} is Python code of transformers and fits into no "
                "tokenizer.json, so its vocabulary cannot be changed",
                "Choose the tokenizer of one model with source, without tokens:.",
            )
        )
    document = without_tokens(anchor.document, dropped)
    model = document["model"]
    if dropped and isinstance(model.get("merges"), list):
        prefix = str(model.get("continuing_subword_prefix") or "")
        rules = bpe.known_rules(bpe.read_rules(model, anchor.label), model["vocab"], prefix)
        document["model"] = model = {
            **model, "merges": bpe.written_rules(rules, model["merges"]),
        }  # fmt: skip
    merging = [i for i, mode in modes.items() if mode == "merge"]
    scores: dict[str, float] = {}
    if anchor.kind == "Unigram" and draft.regular:
        scores = _scores(tokenizers, model, draft, merging)
        pieces = [[piece, scores.get(piece, score)] for piece, score in model["vocab"]]
        document["model"] = {**model, "vocab": pieces}
    try:
        document = with_tokens(document, draft.regular, list(draft.added.values()), scores)
    except ValueError as error:
        raise RecipeError(Problem(where, f"{anchor.label}: {error}")) from None
    if anchor.kind == "BPE" and draft.regular and merging:
        _carry_rules(document, tokenizers, index, draft, merging)
    return document


def _scores(
    tokenizers: Sequence[Tokenizer],
    model: Mapping[str, Any],
    draft: _Draft,
    merging: Sequence[int],
) -> dict[str, float]:
    """Scores of the pieces of a Unigram model and of those that come into it."""
    added = {token.content for token in tokenizers[0].added}
    ours = {p: float(score) for p, score in model["vocab"] if p not in added}
    taken: dict[int, dict[str, float]] = {}
    for i in merging:
        # Added tokens are cut out of the text before, so their scores say nothing.
        no_pieces = {token.content for token in tokenizers[i].added}
        pieces = _model(tokenizers[i])["vocab"]
        taken[i] = {p: float(score) for p, score in pieces if p not in no_pieces}
    scores = unigram.carried_scores(ours, [taken[i] for i in merging])
    return unigram.unused_scores(ours, list(draft.regular)) | scores


def _carry_rules(
    document: dict[str, Any],
    tokenizers: Sequence[Tokenizer],
    index: int,
    draft: _Draft,
    merging: Sequence[int],
) -> None:
    """Put the donors' merge rules into a byte-pair document made in this module."""
    model = document["model"]
    taken: dict[int, list[str]] = {i: [] for i in merging}
    for token, donor in draft.appended:
        if donor in taken and token in draft.regular:
            taken[donor].append(token)
    donors = [
        (_model(tokenizers[i]), bpe.read_rules(_model(tokenizers[i]), tokenizers[i].label), new)
        for i, new in taken.items()
    ]
    label = tokenizers[index].label
    rules = bpe.read_rules(model, label)
    prefix = str(model.get("continuing_subword_prefix") or "")
    if len(bpe.known_rules(rules, model["vocab"], prefix)) != len(rules):
        raise CheckpointError(
            Problem(label, "its tokenizer.json has merge rules of tokens that it does not have")
        )
    carried = bpe.carried_rules(model["vocab"], model, rules, donors)
    model["merges"] = bpe.written_rules(carried.rules, model["merges"])
    # What no chain of rules reaches is reached as a whole word, where text is cut into words.
    if carried.unreached and splits_words(document):
        model["ignore_merges"] = True


def _model(tokenizer: Tokenizer) -> Mapping[str, Any]:
    document = tokenizer.document or {}
    model: Mapping[str, Any] = document["model"]
    return model


def _some(tokens: Sequence[str] | Mapping[str, int]) -> str:
    """``3 tokens (a, b, c)``, with at most three named."""
    return f"{len(tokens)} token{'s' if len(tokens) != 1 else ''} ({first_few(tokens)})"

"""Scores for pieces that come into a Unigram tokenizer from another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MARGIN = 1e-3
"""By how much a piece must beat its best split: scores are logarithms of about -3 to -20."""
UNUSED = 1000.0
"""How far below every other score a piece stands that no text shall use."""


def carried_scores(
    scores: Mapping[str, float], donors: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Scores of the pieces that are not in ``scores`` yet, in the order of the donors.

    A piece keeps its donor's score, which is the logarithm of how likely it is. Where the pieces
    of the anchor give a likelier way to write the same text, it is raised to just above that, so
    that it stays reachable; shorter pieces first, since longer ones can be made of them.

    Args:
        scores: piece → score of the anchor.
        donors: piece → score of each other tokenizer, only pieces that shall come in.
    """
    new: dict[str, float] = {}
    for donor in donors:
        for piece, score in donor.items():
            if piece not in scores:
                new.setdefault(piece, score)
    everything = {**scores, **new}
    longest = max(map(len, everything), default=0)
    for piece in sorted(new, key=len):  # stable: recipe order among equals
        best = best_split(piece, everything, longest)
        if best is not None and everything[piece] <= best:
            everything[piece] = best + MARGIN
    return {piece: everything[piece] for piece in new}


def unused_scores(scores: Mapping[str, float], tokens: Sequence[str]) -> dict[str, float]:
    """Scores so low that the tokens never win against pieces of the anchor."""
    lowest = min(scores.values(), default=0.0)
    return {token: lowest - UNUSED for token in tokens if token not in scores}


def best_split(piece: str, scores: Mapping[str, float], longest: int) -> float | None:
    """The best sum of scores over all ways to write ``piece`` with two or more pieces."""
    count = len(piece)
    best: list[float | None] = [0.0, *([None] * count)]
    for end in range(1, count + 1):
        for start in range(max(0, end - longest), end):
            before = best[start]
            if before is None or end - start == count:
                continue
            score = scores.get(piece[start:end])
            if score is not None and (best[end] is None or before + score > best[end]):  # type: ignore[operator]
                best[end] = before + score
    return best[count]

"""Scores for pieces that come into a Unigram tokenizer from another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MARGIN = 1e-3
"""By how much a piece must beat its best split: scores are logarithms of about -3 to -20."""
UNUSED = 1000.0
"""How far below every other score a piece is put that no text shall use."""


def carried_scores(
    scores: Mapping[str, float], donors: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Scores of all pieces of a union: the anchor's, then the new ones in the donors' order.

    A piece keeps its score, which is the logarithm of how likely it is. Where pieces of another
    tokenizer now give a likelier way to write the same text, it is raised to just above that, so
    that it stays reachable. Shorter pieces go first, since longer ones can be made of them. Pieces
    that their own tokenizer never gives are left alone.

    Args:
        scores: piece → score of the anchor.
        donors: piece → score of each other tokenizer, whole.
    """
    new: dict[str, float] = {}
    homes: dict[str, Mapping[str, float]] = {}
    for donor in donors:
        for piece, score in donor.items():
            if piece not in scores and piece not in new:
                new[piece] = score
                homes[piece] = donor
    everything = {**scores, **new}
    longest = max(map(len, everything), default=0)
    at_risk = [piece for piece in scores if _holds_one_of(piece, new)]
    for piece in sorted((*at_risk, *new), key=len):  # stable: the recipe's order among equals
        best = best_split(piece, everything, longest)
        if best is None or everything[piece] > best:
            continue
        home = homes.get(piece, scores)
        alone = best_split(piece, home, longest)
        if alone is None or home[piece] > alone:
            everything[piece] = best + MARGIN
    return everything


def _holds_one_of(piece: str, new: Mapping[str, float]) -> bool:
    count = len(piece)
    return any(piece[i:j] in new for i in range(count) for j in range(i + 1, count + 1))


def unused_scores(scores: Mapping[str, float], tokens: Sequence[str]) -> dict[str, float]:
    """Scores so low that the tokens never win against pieces of the anchor."""
    lowest = min(scores.values(), default=0.0)
    return dict.fromkeys(tokens, lowest - UNUSED)


def best_split(piece: str, scores: Mapping[str, float], longest: int) -> float | None:
    """The best sum of scores over all ways to write ``piece`` with two or more pieces."""
    count = len(piece)
    best: list[float | None] = [0.0, *([None] * count)]
    for end in range(1, count + 1):
        for start in range(max(0, end - longest), end):
            before, held = best[start], best[end]
            if before is None or end - start == count:
                continue
            score = scores.get(piece[start:end])
            if score is not None and (held is None or before + score > held):
                best[end] = before + score
    return best[count]

"""The methods that choose elements, once more in plain numpy: whole tensors, argsort, float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Exact:
    """A result, the sum of the sizes of everything added up, and where rounding may decide."""

    value: Array
    summands: Array
    open: Array


def certain(value: Array, summands: Array) -> Exact:
    return Exact(value, summands, np.zeros(value.shape, bool))


def deltas(base: Array, models: Sequence[Array], wide: bool) -> list[Array]:
    """Differences to the base as the arithmetic has them: rounded once to its precision."""
    work = np.float64 if wide else np.float32
    return [np.asarray(x.astype(work) - base.astype(work), dtype=np.float64) for x in models]


# --- which elements are kept: masks of 0 and 1 ----------------------------------------------------


def from_largest(scores: Array, first: int, last: int) -> Array:
    """1 for places ``first`` to ``last`` of the elements by size; of equals the earlier is larger.

    A stable sort of the negated numbers is that order.
    """
    mask = np.zeros(scores.size)
    mask[np.argsort(-scores.ravel(), kind="stable")[first:last]] = 1
    return mask.reshape(scores.shape)


def trimmed(delta: Array, density: float) -> Array:
    if density >= 1:
        return np.ones(delta.shape)
    count = int(density * delta.size)
    if count == 0 and density > 0:
        count = 1
    return from_largest(np.abs(delta), 0, count)


def middle(delta: Array, density: float, gamma: float) -> Array:
    if density >= 1:
        return np.ones(delta.shape)
    kept, top = int(density * delta.size), int(gamma * delta.size)
    bottom = delta.size - kept - top
    if bottom < 0:
        top, bottom = top + bottom, 0
    return from_largest(np.abs(delta), top, top + kept)


def rank_chances(delta: Array, density: float, epsilon: float) -> Array:
    """DELLA: along axis 1 (of one axis along that) the smallest gets density − epsilon, …"""
    rows = np.moveaxis(delta, 1, -1) if delta.ndim > 1 else delta.reshape(1, -1)
    n = rows.shape[-1]
    if n == 1:
        return np.full(delta.shape, density)
    sizes = np.abs(rows)
    smaller = (sizes[..., None, :] < sizes[..., :, None]).sum(-1)
    equal = (sizes[..., None, :] == sizes[..., :, None]).sum(-1)
    ranks = smaller + (equal - 1) / 2  # equals share their mean rank
    chances = density - epsilon + 2 * epsilon * ranks / (n - 1)
    return np.moveaxis(chances, -1, 1) if delta.ndim > 1 else chances.reshape(delta.shape)


def norm_factor(delta: Array, mask: Array) -> float:
    before, after = np.abs(delta).sum(), np.abs(delta * mask).sum()
    return float(before / after) if before >= 1e-7 and after >= 1e-7 else 1.0


# --- the pipeline ---------------------------------------------------------------------------------


def combined(
    thinned: Sequence[Array],
    weights: Sequence[float],
    *,
    elect: str = "none",
    normalize: bool = False,
    exact: bool = True,
) -> tuple[Array, Array, Array]:
    """The merged change, the sizes that went into it, and where a sign is anyone's guess.

    ``exact``: sums of the weighted changes have no rounding error, so ties of signs are real.
    """
    terms = [w * d for w, d in zip(weights, thinned, strict=True)]
    if elect == "none":
        divisor = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
        return (
            sum(terms) / divisor,
            sum(np.abs(t) for t in terms) / abs(divisor),
            np.zeros(terms[0].shape, bool),
        )
    votes = [np.sign(t) for t in terms] if elect == "count" else terms
    total = sum(votes)
    guess = (np.abs(total) <= 1e-5 * sum(map(np.abs, votes))) & (total != 0 if exact else True)
    guess = guess & (sum(t != 0 for t in terms) > 1)
    if elect == "count":
        guess = np.zeros(total.shape, bool)
    sign = np.where(total >= 0, 1.0, -1.0)
    agree = [np.sign(t) == sign for t in terms]
    merged = sum(t * a for t, a in zip(terms, agree, strict=True))
    sizes = sum(np.abs(t) * a for t, a in zip(terms, agree, strict=True))
    if normalize:
        divisor = sum(w * a for w, a in zip(weights, agree, strict=True))
        amount = sum(abs(w) * a for w, a in zip(weights, agree, strict=True))
        divisor = np.where(divisor == 0, 1.0, divisor)
        merged = merged / divisor
        sizes = sizes / np.abs(divisor) * np.maximum(1, amount / np.abs(divisor))
    return merged, sizes, guess


def family(
    base: Array,
    changes: Sequence[Array],
    weights: Sequence[float],
    masks: Sequence[Array],
    factors: Sequence[float | Array],
    *,
    elect: str,
    normalize: bool,
    scale: float,
) -> Exact:
    """sparsify → rescale → weight → elect → sum → normalize → λ → add."""
    exact = all(np.all(np.asarray(f) == 1) for f in factors)
    thinned = [d * m * f for d, m, f in zip(changes, masks, factors, strict=True)]
    change, sizes, guess = combined(thinned, weights, elect=elect, normalize=normalize, exact=exact)
    return Exact(base + scale * change, np.abs(base) + abs(scale) * sizes, guess)


def consensus(
    base: Array,
    changes: Sequence[Array],
    merged: tuple[Array, Array, Array],
    thresholds: Sequence[float],
    k: int,
) -> Exact:
    change, sizes, guess = merged
    votes = np.zeros(base.shape)
    for d, limit in zip(changes, thresholds, strict=True):
        against = limit * np.abs(change - d)
        votes = votes + (np.abs(d) > against)
        near = 1e-5 * (np.abs(d) + abs(limit) * (sizes + np.abs(d)))
        guess = guess | ((np.abs(np.abs(d) - against) <= near) & (near > 0))
    if k <= 0:
        guess = merged[2]
    if k > len(changes):
        guess = np.zeros(base.shape, bool)
    return Exact(base + np.where(votes >= k, change, 0), np.abs(base) + sizes, guess)


# --- element by element ---------------------------------------------------------------------------


def sce(base: Array, changes: Sequence[Array], share: float) -> Exact:
    kept = list(changes)
    if share < 1:
        variance = np.var(np.stack(changes), axis=0)
        # Equal variances that come out of different numbers differ in their last digits.
        variance = np.where(variance < 1e-12, 0, np.round(variance, 9))
        count = int(np.count_nonzero(variance) * share)
        mask = from_largest(variance, 0, count)
        kept = [d * mask for d in changes]
    energies = [float((d**2).mean()) if d.size else 0.0 for d in kept]
    if sum(energies) == 0:
        return certain(base, np.abs(base))
    weights = [e / sum(energies) for e in energies]
    sign = np.where(sum(kept) >= 0, 1.0, -1.0)
    total, divisor, sizes = (np.zeros(base.shape) for _ in range(3))
    for d, w in zip(kept, weights, strict=True):
        agree = np.sign(d) == sign
        total += w * d * agree
        divisor += w * agree
        sizes += w * np.abs(d) * agree
    divisor = np.where(divisor == 0, 1.0, divisor)
    return certain(base + total / divisor, np.abs(base) + sizes / divisor)


def nearswap(base: Array, other: Array, t: float) -> Exact:
    share = np.clip(t / np.maximum(np.abs(base - other), 1e-6), 0, 1)
    return certain(share * other + (1 - share) * base, np.abs(base) + np.abs(other))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def fusion(base: Array, other: Array) -> Exact:
    if not base.size:
        return certain(base, base)
    a, b = (np.atleast_1d(v) for v in (other, base))
    p, q = softmax(a) + 1e-8, softmax(b) + 1e-8
    divergence = np.maximum((p * np.log(p / q)).sum(-1, keepdims=True), 0)
    scores = (np.abs(a - b) * divergence).reshape(base.shape)
    if not scores.any():
        return certain(base, np.abs(base))
    ordered = np.sort(scores.ravel())
    first, median, third = (ordered[int(f * (scores.size - 1))] for f in (0.25, 0.5, 0.75))
    limit = median + 1.5 * (third - first)
    chosen = scores >= limit
    # The divergence of a row is a small difference of large numbers.
    noise = np.abs(a - b) * (1e-10 + 1e-5 * divergence)
    near = np.abs(scores - limit) <= noise.reshape(base.shape) + 1e-5 * limit
    return Exact(np.where(chosen, other, base), np.abs(base) + np.abs(other), near)


def ram(
    base: Array, changes: Sequence[Array], epsilon: float, r: float = 0.0, alpha: float = 0.0
) -> Exact:
    active = [np.abs(d) > np.float32(epsilon) for d in changes]
    count = sum(a.astype(int) for a in active)
    total, sizes = np.zeros(base.shape), np.zeros(base.shape)
    for d, a in zip(changes, active, strict=True):
        shared, own = int((a & (count > 1)).sum()), int((a & (count == 1)).sum())
        ratio = 0.0 if shared == 0 else np.inf if max(own, epsilon) == 0 else shared / max(
            own, epsilon)  # fmt: skip
        gain = 1 + r * min(max(ratio, 0.0), alpha)
        total += np.where(a, d * np.where(count == 1, gain, 1.0), 0)
        sizes += np.where(a, np.abs(d) * (1 + abs(r) * alpha), 0)
    return certain(base + total / np.maximum(count, 1), np.abs(base) + sizes)

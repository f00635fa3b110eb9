"""The geometry of whole vectors, once more in plain numpy and float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def norm(x: Array) -> float:
    return float(np.sqrt((x.astype(np.longdouble) ** 2).sum()))


def dot(x: Array, y: Array) -> float:
    return float((x.astype(np.longdouble) * y).sum())


def multislerp(
    models: Sequence[Array],
    weights: Sequence[float],
    *,
    base: Array | None = None,
    normalize: bool = True,
    eps: float = 1e-8,
) -> tuple[Array, float]:
    """The result, and how short the mean of the directions was."""
    if len(models) == 1:
        return models[0], 1.0
    origin = 0 if base is None else base
    vectors = [x - origin for x in models]
    share = np.asarray(weights) / (sum(weights) if normalize else 1.0)
    norms = [norm(v) for v in vectors]
    if not any(norms):
        return sum(w * v for w, v in zip(share, vectors, strict=True)) + origin, 1.0
    units = [v / (n + eps) for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(share, units, strict=True))
    size = norm(mean)
    if size < eps and len(models) == 2:
        return sum(w * v for w, v in zip(share, vectors, strict=True)) + origin, 1.0
    if size == 0:
        return np.full_like(models[0], np.nan), size  # no direction
    mean = mean / size
    tangent = sum(w * (u - dot(u, mean) * mean) for w, u in zip(share, units, strict=True))
    angle = norm(tangent) + eps
    length = sum(w * n for w, n in zip(share, norms, strict=True))
    step = np.cos(angle) * mean + np.sin(angle) / angle * tangent
    return step * length + origin, size


def karcher(models: Sequence[Array], max_iter: int = 10, tol: float = 1e-5) -> tuple[Array, float]:
    """The result, and the largest angle between the mean and a model on the way."""
    if len(models) == 1:
        return models[0], 0.0
    norms = [norm(x) for x in models]
    units = [x / n for x, n in zip(models, norms, strict=True) if n > tol]
    if not units:
        return np.zeros_like(models[0]), 0.0
    mean = sum(units) / len(units)
    mean = units[0] if norm(mean) < tol else mean / norm(mean)
    widest = 0.0
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for u in units:
            cosine = min(1.0, max(-1.0, dot(u, mean)))
            angle = np.arccos(cosine)
            widest = max(widest, float(angle))
            if angle >= tol:
                tangent = tangent + angle / np.sin(angle) * (u - cosine * mean) / len(units)
        step = norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean = mean / norm(mean)
    return mean * (sum(norms) / len(norms)), widest


def model_stock(
    base: Array, models: Sequence[Array], *, filter_wise: bool = False
) -> tuple[Array, float]:
    """The result, and the smallest denominator of a ratio."""
    if filter_wise and base.ndim > 1 and base.size:
        rows = base.reshape(-1, base.shape[-1])
        others = [x.reshape(rows.shape) for x in models]
        done = [model_stock(rows[i], [x[i] for x in others]) for i in range(len(rows))]
        return np.stack([v for v, _ in done]).reshape(base.shape), min(d for _, d in done)
    count = len(models)
    offsets = [x - base for x in models]
    cosines = [
        min(1.0, max(-1.0, dot(offsets[i], offsets[j])
                     / max(norm(offsets[i]) * norm(offsets[j]), 1e-6)))
        for i in range(count) for j in range(i)
    ]  # fmt: skip
    mean = sum(cosines) / len(cosines)
    denominator = 1 + (count - 1) * mean
    t = 0.0 if abs(denominator) < 1e-6 else count * mean / denominator
    return t * sum(models) / count + (1 - t) * base, abs(denominator)

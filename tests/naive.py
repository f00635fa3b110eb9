"""The formulas once more, as plainly as numpy can say them: whole tensors, float64, no tricks.

Nothing here comes from the product, so that a mistake in one is not a mistake in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

Array = np.ndarray


def linear(models: Sequence[Array], weights: Sequence[float], *, normalize: bool = True) -> Array:
    total = np.zeros_like(models[0])
    for x, w in zip(models, weights, strict=True):
        total = total + w * x
    return total / sum(weights) if normalize else total


def task_arithmetic(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    *,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    mixed = np.zeros_like(base)
    for x, w in zip(models, weights, strict=True):
        mixed = mixed + w * (x - base)
    if normalize and abs(sum(weights)) >= 1e-8:
        mixed = mixed / sum(weights)
    return base + scale * mixed


def passthrough(x: Array, scale: float | None) -> Array:
    return x if scale is None else scale * x


def _dot(a: Array, b: Array) -> float:
    return float((a * b).sum())


def slerp(base: Array, other: Array, t: float) -> Array:
    units = []
    for v in (base, other):
        norm = math.sqrt(_dot(v, v))
        units.append(v / norm if norm > 1e-8 else v)
    cosine = min(1.0, max(-1.0, _dot(*units)))
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * other
    theta = math.acos(cosine)
    return (math.sin((1 - t) * theta) * base + math.sin(t * theta) * other) / math.sin(theta)


def _along_the_arc(first: Array, second: Array, t: float) -> Array:
    norms = [max(math.sqrt(_dot(v, v)), 1e-7) for v in (first, second)]
    cosine = min(1.0, max(-1.0, _dot(first / norms[0], second / norms[1])))
    theta = math.acos(cosine)
    # Straight where the two point the same way (to float32) or the opposite way (to 1e-5).
    if np.float32(cosine) == 1 or cosine < 1e-5 - 1:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * theta) * first + math.sin(t * theta) * second) / math.sin(theta)


def nuslerp(
    first: Array,
    second: Array,
    weights: tuple[float, float],
    *,
    base: Array | None = None,
    flatten: bool = True,
    row_wise: bool = False,
) -> Array:
    t = 0.5 if abs(sum(weights)) < 1e-6 else weights[1] / sum(weights)
    a, b = (first, second) if base is None else (first - base, second - base)
    if flatten or a.ndim < 2:
        result = _along_the_arc(a, b, t)
    else:
        axis = 0 if row_wise else a.ndim - 1
        a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
        result = np.empty_like(a)
        for place in np.ndindex(a.shape[:-1]):
            result[place] = _along_the_arc(a[place], b[place], t)
        result = np.moveaxis(result, -1, axis)
    return result if base is None else result + base


# --- how far a result may be from the exact one -------------------------------------------------

DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
SMALLEST = {torch.float64: -1074, torch.float32: -149, torch.float16: -24, torch.bfloat16: -133}


def spacing(values: Array, dtype: torch.dtype) -> Array:
    """The distance from each value to the next one that the format has."""
    _, exponent = np.frexp(np.abs(values))
    return np.ldexp(1.0, np.maximum(exponent - DIGITS[dtype], SMALLEST[dtype]))


def assert_rounded_once(
    got: torch.Tensor, exact: Array, summands: Array, *, wide: bool, operations: float = 4
) -> None:
    """``got`` is ``exact`` computed in float32 (float64 if ``wide``), then rounded once.

    ``summands`` is the sum of the absolute values of everything that was added up, and
    ``operations`` how many roundings of that size the computation may make.
    """
    assert tuple(got.shape) == exact.shape
    slack = operations * spacing(summands, torch.float64 if wide else torch.float32)
    if got.dtype in (torch.float16, torch.bfloat16):
        slack = slack + spacing(exact, torch.float32)  # torch rounds float64 by way of float32
    allowed = 0.5 * spacing(np.abs(exact) + slack, got.dtype) + slack
    wrong = np.abs(got.double().numpy() - exact) - allowed
    if np.any(~(wrong <= 0)):
        worst = np.unravel_index(np.argmax(wrong), wrong.shape)
        raise AssertionError(
            f"{int((~(wrong <= 0)).sum())} of {wrong.size} elements of {got.dtype}; at {worst} "
            f"got {float(got[worst]):.9g}, exact {exact[worst]:.9g}, allowed {allowed[worst]:.3g}"
        )

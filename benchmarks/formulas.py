"""The plain formula of every measured method without chance, in float64, for its recipe.

The longer ones are those of the tests (`tests/naive_*.py`), which share no code with the product.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.paths import ROOT
from benchmarks.recipes import METHODS, WEIGHTS

sys.path.insert(0, str(ROOT / "tests"))

import naive_geometric
import naive_sparse as plain

Tensor = npt.NDArray[np.float64]
Tensors = dict[str, Tensor]
Expected = tuple[Tensor, npt.NDArray[np.bool_] | None]
"""The exact values, and the elements where a rounding decides which of two results is right."""

DENSITY, GAMMA = 0.5, 0.01
LIMIT, VOTES = 0.4, 2
EPSILON, GAIN, RATIO = 1e-5, 0.1, 0.2  # the defaults of ram and ramplus_tl
STEP = 0.0004  # of nearswap


def tuned(x: Tensors) -> list[Tensor]:
    """Return the fine-tunes in the recipe's order."""
    return [x[name] for name in sorted(x) if name != "base"]


def changes(x: Tensors) -> list[Tensor]:
    """Return the task vectors, rounded to float32 as the arithmetic has them."""
    return plain.deltas(x["base"], tuned(x), wide=False)


def linear(x: Tensors) -> Expected:
    """Return the normalised weighted mean."""
    total = sum(w * a for w, a in zip(WEIGHTS, tuned(x), strict=False))
    return np.asarray(total / sum(WEIGHTS[: len(x)])), None


def arc(a: Tensor, b: Tensor, t: float, threshold: float) -> Tensor:
    """Return the spherical interpolation of two tensors, a straight one near the poles."""
    lengths = float(np.sqrt((a * a).sum() * (b * b).sum()))
    cosine = float(np.clip((a * b).sum() / lengths, -1, 1)) if lengths else 0.0
    if abs(cosine) > threshold:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def slerp(x: Tensors) -> Expected:
    """Return slerp with t = 0.4 from the base, straight beyond a cosine of 0.9995."""
    return arc(x["base"], x["ft1"], 0.4, 0.9995), None


def nuslerp(x: Tensors) -> Expected:
    """Return nuslerp of two models with weights 0.6 and 0.4, straight only when collinear."""
    return arc(x["ft1"], x["ft2"], 0.4, 1 - 1e-15), None


def task_arithmetic(x: Tensors) -> Expected:
    """Return the base plus the weighted task vectors."""
    base = x["base"]
    total = sum(w * (a - base) for w, a in zip(WEIGHTS, tuned(x), strict=False))
    return np.asarray(base + total), None


def signed(
    thinned: list[Tensor], *, elect: str, normalize: bool
) -> tuple[Tensor, Tensor, npt.NDArray[np.bool_]]:
    """Return the merged change, its size, and where weighted changes cancel but for a rounding."""
    weights = WEIGHTS[: len(thinned)]
    return plain.combined(thinned, weights, elect=elect, normalize=normalize, exact=False)


def family(
    masks: Callable[[Tensor], Tensor], *, elect: str, normalize: bool
) -> Callable[[Tensors], Expected]:
    """Return the formula of a method that thins out by ``masks``."""

    def formula(x: Tensors) -> Expected:
        thinned = [d * masks(d) for d in changes(x)]
        change, _, undecided = signed(thinned, elect=elect, normalize=normalize)
        return x["base"] + change, undecided

    return formula


def trimmed(delta: Tensor) -> Tensor:
    """Return the mask of ties."""
    return plain.trimmed(delta, DENSITY)


def middle(delta: Tensor) -> Tensor:
    """Return the mask of breadcrumbs."""
    return plain.middle(delta, DENSITY, GAMMA)


def consensus(x: Tensors, *, ties: bool) -> Expected:
    """Return task arithmetic or ties where two models agree with it."""
    found = changes(x)
    thinned = [d * trimmed(d) for d in found] if ties else found
    merged = signed(thinned, elect="sum" if ties else "none", normalize=ties)
    exact = plain.consensus(x["base"], found, merged, [LIMIT] * len(found), VOTES)
    return exact.value, exact.open


def sce(x: Tensors) -> Expected:
    """Return sce, which keeps half of the elements that differ.

    The reference compares variances to nine digits after the point, so it gets everything times
    a power of two, which sce only passes on.
    """
    scale = 2.0**11
    found = [scale * d for d in changes(x)]
    exact = plain.sce(scale * x["base"], found, DENSITY).value / scale
    variance = np.var(np.stack(found), axis=0)
    ordered = np.sort(variance[variance > 0])
    limit = ordered[-max(1, int(ordered.size * DENSITY))] if ordered.size else 0.0
    undecided = np.abs(variance - limit) <= 1e-5 * limit
    undecided |= np.abs(sum(found)) <= 1e-5 * sum(np.abs(d) for d in found)
    return exact, undecided


def opened(exact: plain.Exact) -> Expected:
    """Return a reference's result in our form."""
    return exact.value, exact.open


FORMULAS: dict[str, Callable[[Tensors], Expected]] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "task_arithmetic": task_arithmetic,
    "multislerp": lambda x: (naive_geometric.multislerp(tuned(x), WEIGHTS[: len(x)])[0], None),
    "karcher": lambda x: (naive_geometric.karcher(tuned(x))[0], None),
    "model_stock": lambda x: (naive_geometric.model_stock(x["base"], tuned(x))[0], None),
    "ties": family(trimmed, elect="sum", normalize=True),
    "breadcrumbs": family(middle, elect="none", normalize=False),
    "breadcrumbs_ties": family(middle, elect="sum", normalize=False),
    "sce": sce,
    "arcee_fusion": lambda x: opened(plain.fusion(x["base"], x["ft1"])),
    "nearswap": lambda x: opened(plain.nearswap(x["base"], x["ft1"], STEP)),
    "ram": lambda x: opened(plain.ram(x["base"], changes(x), EPSILON)),
    "ramplus_tl": lambda x: opened(plain.ram(x["base"], changes(x), EPSILON, GAIN, RATIO)),
    "consensus_ta": lambda x: consensus(x, ties=False),
    "consensus_ties": lambda x: consensus(x, ties=True),
}
RANDOM = tuple(name for name in METHODS if name not in FORMULAS and name != "passthrough")
"""Methods with chance: no other program draws the same numbers."""

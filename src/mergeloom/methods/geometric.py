"""Means on the sphere and the geometry of task vectors: coefficients from inner products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergeloom.methods.declaration import Arguments, MethodError, Note, Parameter, WeightedSum
from mergeloom.methods.registry import method
from mergeloom.methods.sums import WEIGHT

if TYPE_CHECKING:
    from mergeloom.methods.declaration import Array, Vectors

SMALLEST_MEAN = 1e-7
"""Of unit vectors that cancel, rounding to float32 and inner products leave about this much."""
SMALLEST_NORM_PRODUCT = 1e-6
SMALLEST_DENOMINATOR = 1e-6
NEARLY_OPPOSITE = 1e-7


def length(coefficients: Array, gram: Array) -> float:
    """The norm of ``Σ aᵢ xᵢ``; rounding below zero counts as zero."""
    squared: float = max(float(coefficients @ gram @ coefficients), 0.0)
    return math.sqrt(squared)


@method(
    name="multislerp",
    title="Multi-SLERP",
    summary="Finds a weighted mean direction of any number of models on the sphere and gives it "
    "the weighted mean of their lengths. With a base it does so with their task vectors.",
    use="Blending more than two models along arcs.",
    base="optional",
    models=(1, None),
    parameters=(
        WEIGHT,
        Parameter(
            "normalize_weights", "divide the weights by their sum", kind="bool", default=True
        ),
        Parameter("eps", "lengths below this count as zero", default=1e-8, low=0.0),
    ),
    reference="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    example="""\
merge_method: multislerp
models:
  - {model: org/A, parameters: {weight: 0.5}}
  - {model: org/B, parameters: {weight: 0.3}}
  - {model: org/C, parameters: {weight: 0.2}}
dtype: bfloat16
""",
    differs="A tensor that no model changed stays the base's; mergekit stops there when there are "
    "three models or more. Weights that sum to zero are an error, not NaN.",
)
def multislerp(arguments: Arguments) -> WeightedSum:
    """One step of the weighted mean on the sphere, from the weighted sum of the directions.

        vᵢ = xᵢ, or Δᵢ with a base;  uᵢ = vᵢ / ‖vᵢ‖;  ωᵢ = wᵢ / Σ wᵢ
        m  = Σ ωᵢ uᵢ, divided by its length
        τ  = Σ ωᵢ (uᵢ − (uᵢ·m) m);  h = ‖τ‖
        result = (cos h · m + sin h / h · τ) · Σ ωᵢ ‖vᵢ‖      + B with a base

    Two opposite vectors give their weighted sum. More than two that cancel have no mean
    direction, which is an error. A single model is returned as it is.
    """
    import numpy as np

    weights = np.asarray(arguments.each("weight"))
    if len(weights) == 1:
        return WeightedSum((0.0, 1.0) if arguments.has_base else (1.0,))
    if arguments.flag("normalize_weights"):
        # What rounding leaves of a zero, as in 0.1 + 0.2 − 0.3, is a zero.
        if abs(weights.sum()) <= 1e-12 * np.abs(weights).sum():
            raise MethodError("the weights sum to zero, so they cannot be normalized")
        weights = weights / weights.sum()
    eps = arguments.number("eps")
    shortest = max(eps, SMALLEST_MEAN * float(np.abs(weights).sum()))

    def coefficients(gram: Array, note: Note) -> Array:
        del note
        norms = np.sqrt(np.diagonal(gram))
        if not norms.any():
            return weights
        units = np.where(norms > 0, 1.0 / np.where(norms > 0, norms + eps, 1.0), 0.0)
        direction = weights * units
        mean = length(direction, gram)
        if mean < shortest:
            if len(weights) == 2:
                return weights
            raise MethodError("the models' vectors cancel out, so they have no mean direction")
        direction = direction / mean
        along = float((weights * units) @ (gram @ direction))
        tangent = weights * units - along * direction
        angle = length(tangent, gram) + eps
        step = np.cos(angle) * direction + np.sinc(angle / np.pi) * tangent  # sinc: sin h / h
        scaled: Array = step * float(weights @ norms)
        return scaled

    return WeightedSum(coefficients, deltas=arguments.has_base)


@method(
    name="karcher",
    title="Karcher Mean",
    summary="Finds the point on the sphere with the smallest sum of squared angles to all models, "
    "and gives it the mean of their lengths. All models count the same.",
    use="An average of several models that keeps their length; it needs no parameters.",
    models=(1, None),
    parameters=(
        Parameter("max_iter", "most steps", kind="int", default=10, low=0),
        Parameter("tol", "stop at steps below this; tensors below it count as zero",
                  default=1e-5, low=0.0),
    ),
    reference="https://arxiv.org/abs/2603.04972",
    example="""\
merge_method: karcher
models:
  - model: org/A
  - model: org/B
  - model: org/C
dtype: bfloat16
""",
    differs="A base_model only gives config and tokenizer; mergekit averages one that is not "
    "listed. A model that points the opposite way of the mean is left out of the direction and "
    "reported; mergekit then divides by nearly nothing.",
)  # fmt: skip
def karcher(arguments: Arguments) -> WeightedSum:
    """The point of the sphere with the least sum of squared angles, times the mean length.

        uᵢ = xᵢ / ‖xᵢ‖;  m starts as Σ uᵢ, divided by its length
        T  = 1/N · Σ θᵢ / sin θᵢ · (uᵢ − cos θᵢ · m),  θᵢ the angle between uᵢ and m
        m  ← cos ‖T‖ · m + sin ‖T‖ · T / ‖T‖      until ‖T‖ < tol, at most max_iter times
        result = m · 1/N · Σ ‖xᵢ‖

    Tensors shorter than tol have no direction and only shorten the result.
    """
    import numpy as np

    steps, tol = int(arguments.number("max_iter")), arguments.number("tol")
    if len(arguments.per_model) == 1:
        return WeightedSum((1.0,))

    def coefficients(gram: Array, note: Note) -> Array:
        norms = np.sqrt(np.diagonal(gram))
        live = norms > tol
        if not live.any():
            return np.zeros(len(norms))
        units = np.where(live, 1.0 / np.where(live, norms, 1.0), 0.0)
        share = live / live.sum()
        mean = share * units
        size = length(mean, gram)
        if size < tol:
            first = int(np.argmax(live))
            mean, size = np.eye(len(norms))[first] * units, 1.0
        mean = mean / size
        for _ in range(steps):
            tangent = _tangent(mean, units, share, gram, tol, note)
            angle = length(tangent, gram)
            if angle < tol:
                break
            mean = np.cos(angle) * mean + np.sin(angle) / angle * tangent
            size = length(mean, gram)
            mean = mean / size if size > tol else mean
        scaled: Array = mean * norms.mean()
        return scaled

    return WeightedSum(coefficients)


def _tangent(mean: Array, units: Array, share: Array, gram: Array, tol: float, note: Note) -> Array:
    """The weighted mean of the vectors from ``mean`` to every model along the sphere."""
    import numpy as np

    cosines = np.clip(units * (gram @ mean), -1.0, 1.0)
    opposite = (share > 0) & (1.0 + cosines < NEARLY_OPPOSITE)
    if opposite.any():
        note("a model points the opposite way of the mean and was left out of its direction")
    angles = np.arccos(cosines)
    used = (share > 0) & (angles >= tol) & ~opposite
    factors = np.where(used, share * angles / np.where(used, np.sin(angles), 1.0), 0.0)
    tangent: Array = factors * units - float(factors @ cosines) * mean
    return tangent


@method(
    name="model_stock",
    title="Model Stock",
    summary="Averages two or more fine-tunes and pulls the average towards the base, the more so "
    "the less their task vectors agree. The pull is computed from the angles between them.",
    use="Several fine-tunes of one base on similar data, without weights to tune.",
    base="required",
    models=(2, None),
    parameters=(
        Parameter(
            "filter_wise", "one angle for each row instead of each tensor",
            kind="bool", default=False,
        ),
    ),
    reference="https://arxiv.org/abs/2403.19522",
    example="""\
merge_method: model_stock
base_model: org/base
models:
  - model: org/A
  - model: org/B
  - model: org/C
dtype: bfloat16
""",
    differs="The same formula. A t outside 0 to 1, which pushes away from the base or from the "
    "average, is reported. The paper derives t for equal angles; averaging the cosines of all "
    "pairs is mergekit's choice and ours.",
)  # fmt: skip
def model_stock(arguments: Arguments) -> WeightedSum:
    """The average of N fine-tunes, moved towards the base.

        c = mean over all pairs of cos(Δᵢ, Δⱼ)
        t = N c / (1 + (N − 1) c)
        result = B + t · 1/N · Σ Δᵢ

    Identical fine-tunes have t = 1; where changes are at right angles t = 0 and the base stays.
    """
    import numpy as np

    count = len(arguments.per_model)

    def coefficients(gram: Array, note: Note) -> Array:
        norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))  # (..., models)
        products = norms[..., :, None] * norms[..., None, :]
        cosines = np.clip(gram / np.maximum(products, SMALLEST_NORM_PRODUCT), -1.0, 1.0)
        first, second = np.triu_indices(count, 1)
        mean = cosines[..., first, second].mean(axis=-1)
        denominator = 1.0 + (count - 1) * mean
        singular = np.abs(denominator) < SMALLEST_DENOMINATOR
        t = np.where(singular, 0.0, count * mean / np.where(singular, 1.0, denominator))
        if ((t < 0) | (t > 1)).any():
            note("the models' task vectors point apart, so t lies outside 0 to 1")
        return np.repeat(t[..., None] / count, count, axis=-1)

    vectors: Vectors = "last" if arguments.flag("filter_wise") else "tensor"
    return WeightedSum(coefficients, deltas=True, vectors=vectors)

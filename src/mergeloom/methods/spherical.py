"""Interpolation on the sphere: coefficients from the angle between two vectors.

numpy is imported where numbers are computed: every command reads the declarations, and few need
the arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.methods.declaration import Arguments, MethodError, Note, Parameter, WeightedSum
from mergeloom.methods.registry import method

if TYPE_CHECKING:
    from mergeloom.methods.declaration import Array, Vectors

SMALLEST_NORM = 1e-8
NEARLY_PARALLEL = 0.9995
SMALLEST_NORM_NUSLERP = 1e-7
NEARLY_ANTIPARALLEL = -0.9995
OPPOSITE = -1.0 + 1e-5

FLATTEN = Parameter("nuslerp_flatten", "treat each tensor as one vector", kind="bool", default=True)
ROW_WISE = Parameter(
    "nuslerp_row_wise",
    "with nuslerp_flatten: false, vectors along axis 0 (columns) instead of the last axis (rows)",
    kind="bool",
    default=False,
)


def cosines(gram: Array, smallest_norm: float, *, divide_by_floor: bool) -> Array:
    """Cosine of two vectors from their (..., 2, 2) Gram matrix, clamped to [-1, 1].

    A norm of at most ``smallest_norm`` is replaced: by that floor itself (``divide_by_floor``)
    or by 1, which leaves a zero vector as it is.
    """
    import numpy as np

    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))  # (..., 2)
    floor = smallest_norm if divide_by_floor else 1.0
    norms = np.where(norms > smallest_norm, norms, floor)
    with np.errstate(invalid="ignore", over="ignore"):  # of an infinite input; found in the output
        cosine: Array = np.clip(gram[..., 0, 1] / (norms[..., 0] * norms[..., 1]), -1.0, 1.0)
    return cosine


def interpolate(cosine: Array, t: float, linear: Array) -> Array:
    """Coefficients (..., 2) of a great-circle step t, or of a straight one where ``linear``."""
    import numpy as np

    theta = np.arccos(cosine)
    sine = np.where(linear, 1.0, np.sin(theta))
    first = np.where(linear, 1.0 - t, np.sin((1.0 - t) * theta) / sine)
    second = np.where(linear, t, np.sin(t * theta) / sine)
    return np.stack([first, second], axis=-1)


@method(
    name="slerp",
    title="SLERP",
    summary="Walks from the base model (t = 0) to the other model (t = 1) along an arc instead of "
    "a straight line, tensor by tensor. With weight instead of t it is nuslerp.",
    use="Blending exactly two models.",
    base="optional",
    models=(1, 2),
    parameters=(
        Parameter(
            "t", "0 is the base model, 1 the other one; outside it extrapolates", low=-1.0, high=2.0
        ),
        Parameter("weight", "instead of t: how much of this model", per_model=True),
        FLATTEN,
        ROW_WISE,
    ),
    reference="https://en.wikipedia.org/wiki/Slerp",
    example="""\
merge_method: slerp
base_model: org/A
models:
  - model: org/A
  - model: org/B
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: bfloat16
""",
    differs="t = 0 is the base_model wherever it is listed, as in mergekit; mergekitty takes the "
    "model that is listed first. With weight it is mergekitty's slerp, which is nuslerp.",
)
def slerp(arguments: Arguments) -> WeightedSum:
    """An arc between two tensors, each taken as one long vector.

        θ = the angle between B and x
        result = (sin((1−t)θ) · B + sin(tθ) · x) / sin θ
        result = (1−t) · B + t · x                             where |cos θ| > 0.9995

    Fine-tunes of one base are mostly that close, so for them slerp is nearly linear.
    """
    if arguments.shared["t"] is None:
        if any(given["weight"] is None for given in arguments.per_model):
            raise MethodError("there is no t, and no weight for each of the two models")
        return _between(arguments)
    if not arguments.has_base or len(arguments.per_model) != 1:
        raise MethodError(
            "t is for exactly two models, one of them the base_model; found "
            f"{len(arguments.per_model)} besides the base"
            if arguments.has_base
            else "t needs a base_model to say which of the two models is t = 0"
        )
    t = arguments.number("t")

    def coefficients(gram: Array, note: Note) -> Array:
        del note
        cosine = cosines(gram, SMALLEST_NORM, divide_by_floor=False)
        return interpolate(cosine, t, abs(cosine) > NEARLY_PARALLEL)

    return WeightedSum(coefficients)


@method(
    name="nuslerp",
    title="NuSLERP",
    summary="Interpolates between two models along an arc, with a weight for each model. "
    "With a third model as base_model it interpolates their task vectors.",
    use="Like slerp when weights are handier than t, or to blend two fine-tunes of one base.",
    base="optional",
    models=(2, 2),
    parameters=(
        Parameter("weight", "how much of this model", required=True, per_model=True),
        FLATTEN,
        ROW_WISE,
    ),
    example="""\
merge_method: nuslerp
base_model: org/base
models:
  - {model: org/A, parameters: {weight: 0.6}}
  - {model: org/B, parameters: {weight: 0.4}}
dtype: bfloat16
""",
    differs="The same formula, and nuslerp_row_wise means the same axis as in mergekit's code (its "
    "documentation says the other one). Vectors within 1e-5 of opposite are interpolated straight; "
    "nearly opposite ones are reported.",
)
def nuslerp(arguments: Arguments) -> WeightedSum:
    """An arc between two models, or with a base between their task vectors.

        t  = w₂ / (w₁ + w₂), 0.5 when the weights cancel
        v₁, v₂ = x₁, x₂, or Δ₁, Δ₂ with a base;  θ = the angle between v₁ and v₂
        result = (sin((1−t)θ) · v₁ + sin(tθ) · v₂) / sin θ      + B with a base

    It is straight only where the two point the same or the opposite way.
    """
    return _between(arguments)


def _between(arguments: Arguments) -> WeightedSum:
    """nuslerp. Vectors of cosine 1 (in float32) or -1 (within 1e-5) interpolate linearly."""
    if len(arguments.per_model) != 2:
        raise MethodError(
            f"exactly two models besides the base are needed, found {len(arguments.per_model)}"
        )
    first, second = arguments.each("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)

    def coefficients(gram: Array, note: Note) -> Array:
        cosine = cosines(gram, SMALLEST_NORM_NUSLERP, divide_by_floor=True)
        # Near -1 the arc is divided by almost nothing: a rounding error there, 1e-7 where products
        # were summed in float32, would become a result a thousand times too large.
        collinear = (cosine.astype("float32") == 1) | (cosine < OPPOSITE)
        if ((cosine < NEARLY_ANTIPARALLEL) & ~collinear).any():
            note("the two vectors are nearly opposite, so the arc between them is ill-defined")
        return interpolate(cosine, t, collinear)

    vectors: Vectors = "tensor"
    if not arguments.flag("nuslerp_flatten"):
        vectors = "first" if arguments.flag("nuslerp_row_wise") else "last"
    return WeightedSum(coefficients, deltas=arguments.has_base, vectors=vectors)

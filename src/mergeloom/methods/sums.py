"""Methods whose coefficients depend on the parameters alone."""

from __future__ import annotations

from mergeloom.methods.declaration import Arguments, MethodError, Parameter, WeightedSum
from mergeloom.methods.registry import method

WEIGHT = Parameter("weight", "how much of this model", required=True, per_model=True)
NORMALIZE = "divide by the sum of the weights"
INT8_MASK = Parameter(
    "int8_mask", "accepted for old recipes; has no effect", kind="bool", default=False
)
LAMBDA = Parameter("lambda", "scale of the merged task vector", default=1.0)


@method(
    name="linear",
    title="Linear",
    summary="Takes the weighted average of the models, element by element. "
    "With normalize: false it takes the plain weighted sum.",
    use="The first thing to try with fine-tunes of one base, and a baseline that is hard to beat.",
    parameters=(WEIGHT, Parameter("normalize", NORMALIZE, kind="bool", default=True)),
    reference="Model Soups, https://arxiv.org/abs/2203.05482",
    example="""\
merge_method: linear
models:
  - {model: org/A, parameters: {weight: 0.6}}
  - {model: org/B, parameters: {weight: 0.4}}
dtype: bfloat16
""",
    differs="A base_model only gives config and tokenizer; mergekit adds one that is not listed to "
    "the average. Weights that sum to zero are an error with normalize, not NaN.",
)
def linear(arguments: Arguments) -> WeightedSum:
    """The weighted average of the models.

        result = Σ wᵢ xᵢ / Σ wᵢ      normalize: true
        result = Σ wᵢ xᵢ             normalize: false

    With normalize only the ratios of the weights count.
    """
    weights = arguments.each("weight")
    if not arguments.flag("normalize"):
        return WeightedSum(tuple(weights))
    total = sum(weights)
    # 0.1 + 0.2 − 0.3 is 6e-17 in binary: what rounding leaves of a zero is a zero.
    if abs(total) <= 1e-12 * sum(abs(w) for w in weights):
        raise MethodError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} sum to zero, "
            "so they cannot be normalized"
        )
    return WeightedSum(tuple(w / total for w in weights))


@method(
    name="task_arithmetic",
    title="Task Arithmetic",
    summary="Adds the weighted differences between the models and their base (task vectors) "
    "back to the base. Negative weights remove what a model learned.",
    use="Combining fine-tunes of one base that learned different skills.",
    base="required",
    models=(0, None),
    parameters=(
        WEIGHT,
        Parameter("normalize", NORMALIZE, kind="bool", default=False),
        LAMBDA,
        INT8_MASK,
    ),
    reference="Editing Models with Task Arithmetic, https://arxiv.org/abs/2212.04089",
    example="""\
merge_method: task_arithmetic
base_model: org/base
models:
  - {model: org/math, parameters: {weight: 0.8}}
  - {model: org/code, parameters: {weight: 0.6}}
dtype: bfloat16
""",
    differs="The same formula, with the same defaults: a sum unless normalize is set, so weights "
    "that add up to 1 give an average.",
)
def task_arithmetic(arguments: Arguments) -> WeightedSum:
    """The base plus the weighted sum of the task vectors.

        result = B + λ · Σ wᵢ Δᵢ

    normalize divides the sum by ``Σ wᵢ``, unless that is 0.
    """
    weights = arguments.each("weight")
    divisor = sum(weights) if arguments.flag("normalize") else 1.0
    if abs(divisor) < 1e-8:
        divisor = 1.0
    scale = arguments.number("lambda") / divisor
    return WeightedSum(tuple(w * scale for w in weights), deltas=True)


@method(
    name="passthrough",
    title="Passthrough",
    summary="Takes every tensor from its one input unchanged, or times scale. "
    "With slices it stacks layers of one or several models.",
    use="Layer stacking (frankenmerges), block expansion and scaling single projections.",
    models=(1, 1),
    parameters=(Parameter("scale", "factor for the tensor; unchanged if absent", per_model=True),),
    example="""\
merge_method: passthrough
slices:
  - sources: [{model: org/A, layer_range: [0, 8]}]
  - sources: [{model: org/A, layer_range: [4, 12]}]
dtype: bfloat16
""",
    differs="A base_model only gives config and tokenizer; mergekit takes one that is not listed "
    "for a second input and stops.",
)
def passthrough(arguments: Arguments) -> WeightedSum:
    """``scale · x``, or ``x`` as it is without scale."""
    scale = arguments.per_model[0]["scale"]
    return WeightedSum((1.0 if scale is None else float(scale),))

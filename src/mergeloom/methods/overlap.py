"""Methods that count how many models changed an element: ram and its variant, consensus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.methods.declaration import (
    BASE_ALONE,
    Arguments,
    Block,
    Elementwise,
    Parameter,
    Totals,
    Values,
)
from mergeloom.methods.pipeline import Pipeline, added, pipeline, rescale, scaled
from mergeloom.methods.registry import method
from mergeloom.methods.sparsify import DENSITY, keep_largest
from mergeloom.methods.sums import INT8_MASK, NORMALIZE, WEIGHT

if TYPE_CHECKING:
    from mergeloom.methods.declaration import Formula

RAM_EPSILON = Parameter("epsilon", "changes up to this size do not count", default=1e-5, low=0.0)
RAM_PAPER = "Reinforced Agent Merging, https://arxiv.org/abs/2601.13572"


@method(
    name="ram",
    title="Reinforced Agent Merging",
    summary="Takes a change that only one model made as it is, and the mean of changes that "
    "several models made. Changes up to epsilon do not count.",
    use="Fine-tunes that changed mostly different elements, such as agents trained with "
    "reinforcement learning.",
    base="required",
    models=(0, None),
    parameters=(RAM_EPSILON,),
    reference=RAM_PAPER,
    example="""\
merge_method: ram
base_model: org/base
models:
  - model: org/A
  - model: org/B
dtype: bfloat16
""",
    differs="The same formula.",
)
def ram(arguments: Arguments) -> Formula:
    """The mean of the changes of those models that changed an element.

        onᵢ = 1 where |Δᵢ| > epsilon, else 0
        result = B + Σ onᵢ Δᵢ / Σ onᵢ

    Where no model is on, the base stays.
    """
    if not arguments.per_model:
        return BASE_ALONE
    epsilon = arguments.number("epsilon")

    def apply(block: Block) -> Values:
        active = active_changes(block, epsilon)
        changes = (on * delta for on, delta in zip(active, block.deltas, strict=True))
        return added(changes) / added(active).clamp(min=1.0) + block.base

    return Elementwise(apply)


@method(
    name="ramplus_tl",
    title="Reinforced Agent Merging Plus (Tensor-Local)",
    summary="Like ram, but changes that only one model made are made larger, the more of that "
    "model's changes are shared with others.",
    use="Like ram when one model's own changes get too weak.",
    base="required",
    models=(0, None),
    parameters=(
        RAM_EPSILON,
        Parameter("r", "how much larger, at most times alpha", default=0.1),
        Parameter("alpha", "the largest ratio of shared to own changes that counts", default=0.2,
                  low=0.0),
    ),
    reference=RAM_PAPER,
    example="""\
merge_method: ramplus_tl
base_model: org/base
models:
  - model: org/A
  - model: org/B
dtype: bfloat16
""",
    differs="The same formula. The result has the recipe's dtype; mergekit's is float32. As the "
    "name says, ratios are those of each tensor; the paper speaks of whole task vectors.",
)  # fmt: skip
def ramplus_tl(arguments: Arguments) -> Formula:
    """ram, with a model's own changes made larger.

        ρᵢ = (elements that i and others changed) / max(those that only i changed, epsilon)
        gᵢ = 1 + r · ρᵢ, with ρᵢ at most alpha
        result = B + gᵢ Δᵢ                  where only model i changed the element
        result = B + Σ onᵢ Δᵢ / Σ onᵢ       where several did, as in ram

    The ratios are those of each tensor.
    """
    if not arguments.per_model:
        return BASE_ALONE
    epsilon = arguments.number("epsilon")
    r, alpha = arguments.number("r"), arguments.number("alpha")
    floor = max(epsilon, 1e-30)  # keeps a model that changed nothing from 0 / 0

    def counts(block: Block) -> list[list[Values]]:
        """How many elements each model changed, and how many of them no other did."""
        active = active_changes(block, epsilon)
        single = only_one(added(active))
        return [[on.sum() for on in active], [(on * single).sum() for on in active]]

    def apply(block: Block) -> Values:
        numbers = zip(*block.known(0).tolist(), strict=True)
        gains = [r * min((every - own) / max(own, floor), alpha) for every, own in numbers]
        active = active_changes(block, epsilon)
        changes = [on * delta for on, delta in zip(active, block.deltas, strict=True)]
        count = added(active)
        gained = added(change * gain for change, gain in zip(changes, gains, strict=True))
        merged = added(changes) / count.clamp(min=1.0) + gained * only_one(count)
        return merged + block.base

    return Elementwise(apply, (Totals(counts),))


def active_changes(block: Block, epsilon: float) -> list[Values]:
    """For every model 1 where it changed an element by more than epsilon, else 0."""
    return [(delta.abs() - epsilon).clamp(min=0.0).sign() for delta in block.deltas]


def only_one(count: Values) -> Values:
    """1 where a count is 1, else 0."""
    return (count * (2.0 - count)).clamp(min=0.0)


def _consensus(arguments: Arguments, steps: Pipeline) -> Elementwise:
    """Keep the merged change only where at least k models agree with it."""
    needed = int(arguments.each("k")[0])
    thresholds = arguments.each("lambda")

    def apply(block: Block) -> Values:
        merged = steps.change(block)
        votes = added(
            (delta.abs() - scaled((merged - delta).abs(), threshold)).clamp(min=0.0).sign()
            for delta, threshold in zip(block.deltas, thresholds, strict=True)
        )
        agreed = (votes - (needed - 0.5)).clamp(min=0.0).sign()
        return merged * agreed + block.base

    return Elementwise(apply, steps.measures())


K = Parameter("k", "models that must agree; the first model's value counts", kind="int",
              default=1, per_model=True, low=0)  # fmt: skip
MASK_THRESHOLD = Parameter(
    "lambda", "how clearly a model must agree: |Δ| > lambda·|merged − Δ|",
    default=1.0, per_model=True,
)  # fmt: skip
CONSENSUS_PAPER = "Localizing Task Information, https://arxiv.org/abs/2405.07813"
CONSENSUS_DIFFERS = (
    "mergekit 0.1.5 does not have it; names and defaults are mergekitty's. Here lambda is the "
    "threshold of the vote, not the scale it is elsewhere. The authors use k = 2, and compare with "
    "the unweighted sum of the task vectors."
)


@method(
    name="consensus_ta",
    title="Consensus Task Arithmetic",
    summary="Adds up weighted task vectors and keeps the sum only where at least k models agree "
    "with it. Elsewhere the base stays.",
    use="Removing changes that only one model wants (k = 2).",
    base="required",
    models=(0, None),
    parameters=(
        WEIGHT,
        K,
        MASK_THRESHOLD,
        Parameter("normalize", NORMALIZE, kind="bool", default=False),
        INT8_MASK,
    ),
    reference=CONSENSUS_PAPER,
    example="""\
merge_method: consensus_ta
base_model: org/base
models:
  - {model: org/A, parameters: {weight: 1.0, k: 2, lambda: 0.4}}
  - {model: org/B, parameters: {weight: 1.0, k: 2, lambda: 0.4}}
dtype: bfloat16
""",
    differs=CONSENSUS_DIFFERS,
)
def consensus_ta(arguments: Arguments) -> Formula:
    """Task arithmetic where at least k models agree with it, the base elsewhere.

        M  = Σ wᵢ Δᵢ, divided by Σ wᵢ with normalize
        vᵢ = 1 where |Δᵢ| > lambdaᵢ · |M − Δᵢ|, else 0
        result = B + M where Σ vᵢ ≥ k, else B

    k is one number for all; that of the first model counts.
    """
    if not arguments.per_model:
        return BASE_ALONE
    return _consensus(arguments, pipeline(arguments, None, elect=False))


@method(
    name="consensus_ties",
    title="Consensus TIES",
    summary="Merges by TIES and keeps the result only where at least k models agree with it. "
    "Elsewhere the base stays.",
    use="Like consensus_ta with TIES as the merge.",
    base="required",
    models=(0, None),
    parameters=(
        WEIGHT,
        DENSITY,
        K,
        MASK_THRESHOLD,
        Parameter("normalize", NORMALIZE, kind="bool", default=True),
        rescale("false"),
        INT8_MASK,
    ),
    reference=CONSENSUS_PAPER,
    example="""\
merge_method: consensus_ties
base_model: org/base
models:
  - {model: org/A, parameters: {weight: 1.0, density: 0.5, k: 2, lambda: 0.6}}
  - {model: org/B, parameters: {weight: 1.0, density: 0.5, k: 2, lambda: 0.6}}
dtype: bfloat16
""",
    differs=CONSENSUS_DIFFERS,
)
def consensus_ties(arguments: Arguments) -> Formula:
    """TIES where at least k models agree with it, the base elsewhere.

        M  = the change that ties makes
        vᵢ = 1 where |Δᵢ| > lambdaᵢ · |M − Δᵢ|, else 0, with the whole Δᵢ
        result = B + M where Σ vᵢ ≥ k, else B

    k is one number for all; that of the first model counts.
    """
    if not arguments.per_model:
        return BASE_ALONE
    return _consensus(arguments, pipeline(arguments, keep_largest, elect=True))

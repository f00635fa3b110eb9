"""Methods that decide element by element which model's change to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeloom.methods.declaration import (
    BASE_ALONE,
    Arguments,
    Block,
    Elementwise,
    Largest,
    Parameter,
    Totals,
    Values,
)
from mergeloom.methods.pipeline import added, elected_sum
from mergeloom.methods.registry import method
from mergeloom.methods.sums import INT8_MASK

if TYPE_CHECKING:
    from mergeloom.methods.declaration import Formula

SMALLEST_DISTANCE = 1e-6
PROBABILITY_FLOOR = 1e-8
QUARTILES = (0.25, 0.5, 0.75)


# --- sce ---------------------------------------------------------------------------------------


@method(
    name="sce",
    title="SCE",
    summary="Keeps the elements on which the models differ most, weighs each model by the energy "
    "of its changes, and adds up the changes that agree in sign.",
    use="Fusing several fine-tunes of one base without weights to tune.",
    base="required",
    models=(0, None),
    parameters=(
        Parameter("select_topk", "share of the elements that differ which is kept",
                  default=1.0, low=0.0, high=1.0),
        INT8_MASK,
    ),
    reference="FuseChat, https://arxiv.org/abs/2408.07990",
    example="""\
merge_method: sce
base_model: org/base
models:
  - model: org/A
  - model: org/B
parameters: {select_topk: 0.5}
dtype: bfloat16
""",
    differs="mergekit gives all models the same weight where their energies add up to less than "
    "1e-6, as in many tensors of a usual fine-tune; the method's reference does not, nor do we. "
    "The reference selects only to compute the weights; mergekit and we also drop what is not "
    "selected.",
)  # fmt: skip
def sce(arguments: Arguments) -> Formula:
    """Select by variance, calculate weights from energies, erase the minority's sign.

        Dᵢ = Δᵢ for the ⌊select_topk·m⌋ elements with the largest variance over the models
             (m elements have any variance), 0 elsewhere
        eᵢ = mean of Dᵢ² over the tensor;  ωᵢ = eᵢ / Σ e
        s  = sign of Σ Dᵢ, + for 0
        result = B + Σ ωᵢ Dᵢ / Σ ωᵢ      both sums over the models with sign Dᵢ = s

    With a select_topk of 1 nothing is left out.
    """
    if not arguments.per_model:
        return BASE_ALONE
    share = arguments.number("select_topk")

    def selected(block: Block) -> Sequence[Values]:
        if share >= 1:
            return block.deltas
        (scores,) = variance(block)
        chosen = block.keep_largest(0, 0, 0, scores).sign()
        return [delta * chosen for delta in block.deltas]

    def energies(block: Block) -> list[Values]:
        return [delta.square().sum() for delta in selected(block)]

    def apply(block: Block) -> Values:
        deltas = selected(block)
        energy = block.known(1 if share < 1 else 0).tolist()
        weights = [e / (sum(energy) or 1.0) for e in energy]
        terms = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
        return elected_sum(terms, deltas, weights) + block.base

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del size
        return [[int(nonzero[0] * share)]]

    measures = (Largest(variance, counts, of_nonzero=True),) if share < 1 else ()
    return Elementwise(apply, (*measures, Totals(energies)))


def variance(block: Block) -> list[Values]:
    """Variance over the models times their number squared, ≥ 0, as one row of scores.

    Exactly 0 where they agree: from the squared differences of every pair, since a mean of equal
    numbers may round away from them.
    """
    deltas = block.deltas
    pairs = [(one, other) for i, one in enumerate(deltas) for other in deltas[:i]]
    pairs = pairs or [(deltas[0], deltas[0])]
    total = added((one - other).square() for one, other in pairs)
    return [total.abs()]  # a NaN may have a sign


# --- two models ----------------------------------------------------------------------------------


@method(
    name="nearswap",
    title="NearSwap",
    summary="Moves every element of the base towards the other model by at most t. Elements that "
    "are closer than t become the other model's.",
    use="Giving a base a light touch of another model.",
    base="required",
    models=(0, 1),
    parameters=(Parameter("t", "the largest change of an element; 0 is the base", required=True),),
    reference="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    example="""\
merge_method: nearswap
base_model: org/base
models:
  - model: org/A
parameters: {t: 0.0001}
dtype: bfloat16
""",
    differs="As in mergekit: t of 0 or below gives the base. mergekitty refuses it, and has no "
    "floor of 1e-6 under the distance.",
)
def nearswap(arguments: Arguments) -> Formula:
    """A step of at most t from the base, element by element.

        result = B + ω · Δ,  ω = t / max(|Δ|, 1e-6), at most 1

    Δ is the other model minus the base.
    """
    t = arguments.number("t")
    if not arguments.per_model or t <= 0:
        return BASE_ALONE

    def apply(block: Block) -> Values:
        delta = block.deltas[0]
        # With Δ's sign in ω: torch rounds a number divided by a tensor twice, tiles do it once.
        share = (delta.sign() * t / delta.abs().clamp(min=SMALLEST_DISTANCE)).clamp(
            min=-1.0, max=1.0
        )
        return share * delta.abs() + block.base

    return Elementwise(apply)


@method(
    name="arcee_fusion",
    title="Arcee Fusion",
    summary="Takes the other model's elements where they differ most from the base, and the "
    "base's elsewhere. How much counts as most is computed from the quartiles of a score.",
    use="Taking over only the important changes of one fine-tune.",
    base="required",
    models=(1, 1),
    reference="https://www.arcee.ai",
    example="""\
merge_method: arcee_fusion
base_model: org/base
models:
  - model: org/A
dtype: bfloat16
""",
    differs="The quartiles are exact; mergekit takes those of more than a million scores from a "
    "random sample, so its results vary. Divergences are as exact as in float64; in bfloat16 those "
    "of small changes are lost. Where all scores are zero the base stays.",
)
def arcee_fusion(arguments: Arguments) -> Formula:
    """The other model's elements where a score is high.

        score  = |Δ| · KL(softmax of x's row ‖ softmax of B's row), rows along the last axis
        result = x where score ≥ median + 1.5 · (Q₃ − Q₁), else B

    Median and quartiles are those of the scores of the tensor.
    """
    del arguments

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        quartiles = (size - int(q * (size - 1)) for q in QUARTILES)
        return [[*quartiles, 0 if nonzero[0] else 1]]  # the largest: only if it may be 0

    def apply(block: Block) -> Values:
        first, median, third, largest = (block.threshold(0, 0, i) for i in range(4))
        if largest == 0:
            return block.base
        limit = median + 1.5 * (third - first)
        (scores,) = fusion_scores(block)
        stays = (limit - scores).sign().clamp(min=0.0)  # 1 where score < limit, else 0
        return (1.0 - stays) * block.deltas[0] + block.base

    return Elementwise(apply, (Largest(fusion_scores, counts),), whole_rows=True)


def fusion_scores(block: Block) -> list[Values]:
    """``|A − B|`` times the divergence of the row's softmaxes, ≥ 0, as one row of scores."""
    divergence = block.row_divergence(0, PROBABILITY_FLOOR)
    return [(block.deltas[0] * divergence).abs()]  # abs last: a NaN may have a sign

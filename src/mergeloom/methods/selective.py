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
)
from mergeloom.methods.pipeline import agreeing_weight, keep_elected
from mergeloom.methods.registry import method
from mergeloom.methods.sums import INT8_MASK

if TYPE_CHECKING:
    import torch

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

    def selected(block: Block) -> torch.Tensor:
        if share >= 1:
            return block.deltas
        return block.deltas.mul_(block.keep_largest(0, 0, 0, variance(block)[0]).sign_())

    def energies(block: Block) -> torch.Tensor:
        return selected(block).square_().sum(1)

    def apply(block: Block) -> torch.Tensor:
        deltas = list(selected(block))
        energy = block.known(1 if share < 1 else 0)
        total = float(energy.sum())
        weights = (energy / total).tolist() if total else [0.0] * len(deltas)
        votes = block.spare("votes").zero_()
        for delta in deltas:
            votes.add_(delta)
        minus = keep_elected(deltas, votes)
        divisor = agreeing_weight(block, deltas, weights)
        merged: torch.Tensor = deltas[0].mul_(weights[0])
        for delta, weight in zip(deltas[1:], weights[1:], strict=True):
            merged.add_(delta, alpha=weight)
        merged.div_(divisor)
        merged.view(minus.dtype).bitwise_xor_(minus)
        return merged.add_(block.base)

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del size
        return [[int(nonzero[0] * share)]]

    measures = (Largest(variance, counts, of_nonzero=True),) if share < 1 else ()
    return Elementwise(apply, (*measures, Totals(energies)))


def variance(block: Block) -> torch.Tensor:
    """Variance over the models times their number squared, shape (1, elements), ≥ 0.

    Exactly 0 where they agree: from the squared differences of every pair, since a mean of equal
    numbers may round away from them.
    """
    import torch

    count = len(block.deltas)
    total, difference = block.spare("variance").zero_(), block.spare("difference")
    for i in range(count):
        for j in range(i):
            torch.sub(block.deltas[i], block.deltas[j], out=difference)
            total.addcmul_(difference, difference)
    return total.abs_()[None]  # a NaN may carry a sign


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

    def apply(block: Block) -> torch.Tensor:
        delta = block.deltas[0]
        step = delta.abs().clamp_(min=SMALLEST_DISTANCE).reciprocal_().mul_(t).clamp_(0.0, 1.0)
        return step.mul_(delta).add_(block.base)

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
    "random sample, so its results vary. Divergences are computed in float64; in bfloat16 those of "
    "small changes are lost. Where all scores are zero the base stays.",
)
def arcee_fusion(arguments: Arguments) -> Formula:
    """The other model's elements where a score is high.

        score  = |Δ| · KL(softmax of x's row ‖ softmax of B's row), rows along the last axis
        result = x where score ≥ median + 1.5 · (Q₃ − Q₁), else B

    Median and quartiles are those of the scores of the tensor.
    """
    del arguments

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del nonzero
        return [[*(size - int(q * (size - 1)) for q in QUARTILES), 1]]

    def apply(block: Block) -> torch.Tensor:
        first, median, third, largest = (block.threshold(0, 0, i) for i in range(4))
        if largest == 0:
            return block.base
        limit = median + 1.5 * (third - first)
        scores = fusion_scores(block)[0]
        chosen = scores.sub(limit).sign_().add_(0.5).clamp_(min=0.0).sign_()  # 1 where >= limit
        return chosen.mul_(block.deltas[0]).add_(block.base)

    return Elementwise(apply, (Largest(fusion_scores, counts),), whole_rows=True)


def fusion_scores(block: Block) -> torch.Tensor:
    """``|A − B|`` times the divergence of the row's softmaxes, shape (1, elements), ≥ 0."""
    import torch

    row = block.shape[-1] if block.shape else 1
    delta = block.deltas[0].view(-1, row)
    base = block.base.view(-1, row)
    # Of a usual fine-tune (changes of 5e-4) the divergence is 1e-7: float32 would see only noise.
    wide = torch.float32 if base.device.type == "mps" else torch.float64

    def divergence() -> torch.Tensor:
        ours = (base + delta).softmax(-1, dtype=wide).add_(PROBABILITY_FLOOR)
        theirs = base.softmax(-1, dtype=wide).add_(PROBABILITY_FLOOR)
        found = ours.div(theirs).log_().mul_(ours).sum(-1, keepdim=True).clamp_(min=0.0)
        return found.to(delta.dtype)

    scores = delta.mul(block.once(divergence)).abs_()  # abs last: a NaN may carry a sign
    return scores.view(1, -1)

"""Methods that decide element by element which model's change to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeloom.methods.declaration import (
    Arguments,
    Block,
    Elementwise,
    Largest,
    Parameter,
    Totals,
    WeightedSum,
)
from mergeloom.methods.registry import method
from mergeloom.methods.sparse import (
    DENSITY,
    Pipeline,
    keep_largest,
    one_for_zero,
    pipeline,
    rescale,
)
from mergeloom.methods.sums import INT8_MASK, NORMALIZE, WEIGHT

if TYPE_CHECKING:
    import torch

    from mergeloom.methods.declaration import Formula

BASE_ALONE = WeightedSum((), deltas=True)
"""The result when there is nothing but the base."""

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
)  # fmt: skip
def sce(arguments: Arguments) -> Formula:
    """Select by variance, calculate weights from energies, erase the minority sign (2408.07990).

    Of the elements with any variance the ⌊select_topk · count⌋ with the largest are kept; weights
    are mean squares of the selected changes, normalized; no absolute threshold on them.
    """
    import torch

    if not arguments.per_model:
        return BASE_ALONE
    share = arguments.number("select_topk")

    def selected(block: Block) -> torch.Tensor:
        if share >= 1:
            return block.deltas
        return block.deltas * block.largest(0, 0, 0, variance(block)[0])

    def energies(block: Block) -> torch.Tensor:
        return selected(block).square().sum(1, dtype=torch.float64)

    def apply(block: Block) -> torch.Tensor:
        deltas = selected(block)
        energy = block.known(1 if share < 1 else 0)
        total = float(energy.sum())
        weights = (energy / total).tolist() if total else [0.0] * len(deltas)
        elected = torch.ones_like(block.base).copysign_(deltas.sum(0).add_(0.0))
        merged, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
        for delta, weight in zip(deltas, weights, strict=True):
            agreeing = (delta * elected).clamp_(min=0.0)
            merged.add_(agreeing, alpha=weight)
            divisor.add_(agreeing.sign_(), alpha=weight)
        return merged.div_(one_for_zero(divisor)).mul_(elected).add_(block.base)

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del size
        return [[int(nonzero[0] * share)]]

    measures = (Largest(variance, counts),) if share < 1 else ()
    return Elementwise(apply, (*measures, Totals(energies)))


def variance(block: Block) -> torch.Tensor:
    """Population variance over the models, shape (1, elements), exactly 0 where they agree.

    From the squared differences of every pair, since a mean of equal numbers may round away
    from them.
    """
    import torch

    count = len(block.deltas)
    total = torch.zeros_like(block.base)
    for i in range(count):
        for j in range(i):
            total.add_((block.deltas[i] - block.deltas[j]).square_())
    return total.div_(count * count).abs_()[None]  # a NaN may carry a sign


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
)
def nearswap(arguments: Arguments) -> Formula:
    """``B + ω (A − B)`` with ``ω = clamp(t / max(|A − B|, 1e-6), 0, 1)``, element by element."""
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
)
def arcee_fusion(arguments: Arguments) -> Formula:
    """``A`` where ``|A − B| · KL(row) ≥ median + 1.5 (Q3 − Q1)``, else ``B``; exact quartiles.

    KL is taken between the softmax of the rows (last axis). All scores zero give the base.
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
    ours = (base + delta).softmax(-1, dtype=wide).add_(PROBABILITY_FLOOR)
    theirs = base.softmax(-1, dtype=wide).add_(PROBABILITY_FLOOR)
    divergence = ours.div(theirs).log_().mul_(ours).sum(-1, keepdim=True).clamp_(min=0.0)
    scores = delta.mul(divergence.to(delta.dtype)).abs_()  # abs last: a NaN may carry a sign
    return scores.view(1, -1)


# --- ram -----------------------------------------------------------------------------------------

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
)
def ram(arguments: Arguments) -> Formula:
    """``B + Σ on·Δ / max(Σ on, 1)`` with ``on = |Δ| > epsilon``."""
    if not arguments.per_model:
        return BASE_ALONE
    epsilon = arguments.number("epsilon")

    def apply(block: Block) -> torch.Tensor:
        active = active_changes(block, epsilon)
        count = active.sum(0).clamp_(min=1.0)
        return active.mul_(block.deltas).sum(0).div_(count).add_(block.base)

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
)  # fmt: skip
def ramplus_tl(arguments: Arguments) -> Formula:
    """ram with own changes times ``1 + r · clamp(shared / max(own, epsilon), 0, alpha)``."""
    import torch

    if not arguments.per_model:
        return BASE_ALONE
    epsilon = arguments.number("epsilon")
    r, alpha = arguments.number("r"), arguments.number("alpha")

    def overlaps(block: Block) -> torch.Tensor:
        active = active_changes(block, epsilon)
        alone = active * only_one(active)
        own = alone.sum(1, dtype=torch.float64)
        return torch.stack([active.sum(1, dtype=torch.float64) - own, own])

    def apply(block: Block) -> torch.Tensor:
        shared, own = block.known(0)
        # The floor keeps a model that changed nothing from 0 / 0 when epsilon is 0.
        gains = r * (shared / own.clamp(min=max(epsilon, 1e-30))).clamp(0.0, alpha)
        active = active_changes(block, epsilon)
        count, single = active.sum(0).clamp_(min=1.0), only_one(active)
        merged = torch.zeros_like(block.base)
        for delta, on, gain in zip(block.deltas, active, gains.tolist(), strict=True):
            merged.add_(on.mul_(delta).mul_(single.mul(gain).add_(1.0)))
        return merged.div_(count).add_(block.base)

    return Elementwise(apply, (Totals(overlaps),))


def active_changes(block: Block, epsilon: float) -> torch.Tensor:
    """1 where a model changed an element by more than epsilon, shape (models, elements)."""
    return block.deltas.abs().sub_(epsilon).clamp_(min=0.0).sign_()


def only_one(active: torch.Tensor) -> torch.Tensor:
    """1 where exactly one model is active, shape (elements,)."""
    count = active.sum(0)
    return count.sign().mul_(count.neg_().add_(2.0).clamp_(min=0.0))


# --- consensus -----------------------------------------------------------------------------------


def _consensus(arguments: Arguments, steps: Pipeline) -> Elementwise:
    """Keep the merged change only where at least k models agree with it."""
    import torch

    needed = int(arguments.each("k")[0])
    thresholds = arguments.each("lambda")

    def apply(block: Block) -> torch.Tensor:
        merged = steps.change(block)
        votes = torch.zeros_like(merged)
        for delta, threshold in zip(block.deltas, thresholds, strict=True):
            against = (merged - delta).abs_().mul_(threshold)
            votes.add_(delta.abs().sub_(against).clamp_(min=0.0).sign_())
        agreed = votes.sub_(needed - 0.5).clamp_(min=0.0).sign_()
        return merged.mul_(agreed).add_(block.base)

    return Elementwise(apply, steps.measures())


K = Parameter("k", "models that must agree; the first model's value counts", kind="int",
              default=1, per_model=True, low=0)  # fmt: skip
MASK_THRESHOLD = Parameter(
    "lambda", "how clearly a model must agree: |Δ| > lambda·|merged − Δ|",
    default=1.0, per_model=True,
)  # fmt: skip
CONSENSUS_PAPER = "Localizing Task Information, https://arxiv.org/abs/2405.07813"


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
)
def consensus_ta(arguments: Arguments) -> Formula:
    """Task arithmetic, masked where fewer than k models agree (2405.07813)."""
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
)
def consensus_ties(arguments: Arguments) -> Formula:
    """TIES, masked where fewer than k models agree (2405.07813)."""
    if not arguments.per_model:
        return BASE_ALONE
    return _consensus(arguments, pipeline(arguments, keep_largest, elect=True))

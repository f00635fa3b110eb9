"""Task vectors made sparse, elected by sign and added: ties, dare, della, breadcrumbs.

One pipeline: sparsify → rescale → weight → elect → sum → normalize → λ → add to the base. A method
is a row of the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.methods.declaration import (
    Arguments,
    Block,
    Elementwise,
    Largest,
    Method,
    MethodError,
    Parameter,
    Totals,
    WeightedSum,
)
from mergeloom.methods.registry import method
from mergeloom.methods.sums import INT8_MASK, LAMBDA, NORMALIZE, WEIGHT

if TYPE_CHECKING:
    import torch

SMALLEST_TOTAL = 1e-7

DENSITY = Parameter(
    "density", "share of each task vector that is kept", default=1.0, per_model=True,
    low=0.0, high=1.0,
)  # fmt: skip
EPSILON = Parameter(
    "epsilon", "how far keep probabilities reach around density", default=0.15, per_model=True,
    low=0.0, high=1.0,
)  # fmt: skip
GAMMA = Parameter(
    "gamma", "share of the largest changes that is dropped", default=0.01, per_model=True,
    low=0.0, high=1.0,
)  # fmt: skip
ELECTION = Parameter(
    "consensus_method", "elect signs by the sum of the changes or by their count",
    kind="choice", default="sum", choices=("sum", "count"),
)  # fmt: skip


def rescale(default: str) -> Parameter:
    """The parameter that makes up for what was dropped."""
    return Parameter(
        "rescale", "true keeps the sum of magnitudes of each tensor, density divides by the keep "
        "probability (the paper)", kind="choice", default=default,
        choices=("true", "false", "density"),
    )  # fmt: skip


@dataclass(frozen=True)
class Sparsifier:
    """How task vectors are thinned out.

    Args:
        masks: a block → for every model the elements that are kept, None for all of them.
        chances: a block → for every model the probability each kept element had.
        measures: what the masks need to know.
        whole_rows: whether a row's elements depend on each other.
    """

    masks: Callable[[Block], list[torch.Tensor | None]]
    chances: Callable[[Block], Sequence[float | torch.Tensor]]
    measures: tuple[Largest, ...] = ()
    whole_rows: bool = False


def keep_largest(arguments: Arguments) -> Sparsifier:
    """The ⌊density·n⌋ largest changes of each tensor, at least one if density > 0 (TIES)."""
    densities = arguments.each("density")

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del nonzero
        return [[size if d >= 1 else max(int(d * size), int(d > 0))] for d in densities]

    def masks(block: Block) -> list[torch.Tensor | None]:
        return [
            None if d >= 1 else block.largest(0, i, 0, block.deltas[i].abs())
            for i, d in enumerate(densities)
        ]

    measures = (Largest(lambda block: block.deltas.abs(), counts),)
    return Sparsifier(masks, lambda _block: densities, measures if min(densities) < 1 else ())


def keep_middle(arguments: Arguments) -> Sparsifier:
    """⌊density·n⌋ changes below the ⌊gamma·n⌋ largest (Model Breadcrumbs, 2312.06795)."""
    densities, gammas = arguments.each("density"), arguments.each("gamma")

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del nonzero
        found = []
        for density, gamma in zip(densities, gammas, strict=True):
            kept, top = int(density * size), int(gamma * size)
            top = min(top, size - kept)
            found.append([top, kept + top])
        return found

    def masks(block: Block) -> list[torch.Tensor | None]:
        found: list[torch.Tensor | None] = []
        for i, density in enumerate(densities):
            if density >= 1:
                found.append(None)
                continue
            size = block.deltas[i].abs()
            outliers = block.largest(0, i, 0, size)
            found.append(block.largest(0, i, 1, size).sub_(outliers))
        return found

    measures = (Largest(lambda block: block.deltas.abs(), counts),)
    return Sparsifier(masks, lambda _block: densities, measures if min(densities) < 1 else ())


def keep_by_chance(arguments: Arguments) -> Sparsifier:
    """Every change with probability density (DARE, 2311.03099)."""
    densities = arguments.each("density")

    def masks(block: Block) -> list[torch.Tensor | None]:
        return [None if d >= 1 else block.chance(i, d) for i, d in enumerate(densities)]

    return Sparsifier(masks, lambda _block: densities)


def keep_by_rank(arguments: Arguments) -> Sparsifier:
    """Larger changes of a row with higher probability (DELLA, 2406.11617).

    The smallest of n changes along axis 1 is kept with probability density − epsilon, the
    largest with density + epsilon, the others in equal steps between; a single one with density.
    """
    densities, epsilons = arguments.each("density"), arguments.each("epsilon")
    for density, epsilon in zip(densities, epsilons, strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            most = min(density, 1 - density)
            raise MethodError(
                f"density {density:g} ± epsilon {epsilon:g} leaves 0 to 1; with this density "
                f"epsilon must be below {most:g}"
            )

    def chances(block: Block) -> list[float | torch.Tensor]:
        return [
            d if d >= 1 or d <= 0 else rank_chances(block, i, d, e)
            for i, (d, e) in enumerate(zip(densities, epsilons, strict=True))
        ]

    def masks(block: Block) -> list[torch.Tensor | None]:
        return [
            None if isinstance(p, float) and p >= 1 else block.chance(i, p)
            for i, p in enumerate(chances(block))
        ]

    return Sparsifier(masks, chances, whole_rows=any(0 < d < 1 for d in densities))


def rank_chances(block: Block, model: int, density: float, epsilon: float) -> torch.Tensor:
    """DELLA's keep probability of every element of a block, shape (elements,).

    The rank comes from one sort of integers that hold a magnitude's bits above the element's
    place, which numpy does many times faster than an argsort; equal magnitudes rank by place.
    """
    import numpy as np
    import torch

    shape = block.shape
    axis = shape[1] if len(shape) > 1 else block.deltas.shape[1]
    if axis <= 1:
        return torch.full_like(block.deltas[model], density)
    size = block.deltas[model].abs().float()
    rows = size.view(-1, axis, _product(shape[2:])).transpose(1, 2).reshape(-1, axis)
    place = torch.arange(axis, dtype=torch.int64)
    keys = rows.cpu().view(torch.int32).to(torch.int64).mul_(1 << 32).add_(place).numpy()
    order = torch.from_numpy(np.sort(keys, axis=1)).bitwise_and_(0xFFFFFFFF)
    kind = block.deltas.dtype
    steps = torch.linspace(density - epsilon, density + epsilon, axis, dtype=kind)
    chance = torch.empty(rows.shape, dtype=kind)
    chance.scatter_(1, order, steps.expand(rows.shape))
    back = chance.view(-1, _product(shape[2:]), axis).transpose(1, 2).reshape(-1)
    return back.to(block.deltas.device)


def _product(lengths: Sequence[int]) -> int:
    count = 1
    for length in lengths:
        count *= length
    return count


# --- the pipeline ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pipeline:
    """Everything that turns task vectors into the change of one tensor."""

    weights: list[float]
    sparsifier: Sparsifier | None
    rescaling: str
    elect: str
    normalize: bool
    scale: float

    def measures(self) -> tuple[Totals | Largest, ...]:
        """What must be known about the whole tensor."""
        own = self.sparsifier.measures if self.sparsifier else ()
        return (*own, Totals(self.magnitudes)) if self.rescaling == "true" else own

    def magnitudes(self, block: Block) -> torch.Tensor:
        """Sums of |Δ| before and after thinning, shape (models, 2)."""
        import torch

        masks = self.sparsifier.masks(block) if self.sparsifier else [None] * len(self.weights)
        sums = []
        for delta, mask in zip(block.deltas, masks, strict=True):
            size = delta.abs()
            before = size.sum(dtype=torch.float64)
            kept = before if mask is None else size.mul_(mask).sum(dtype=torch.float64)
            sums.append(torch.stack([before, kept]))
        return torch.stack(sums)

    def change(self, block: Block) -> torch.Tensor:
        """The merged task vector of a block, after normalization and without λ."""
        terms = self._terms(block)
        if self.elect == "none":
            return self._total(terms)
        return self._elected(terms)

    def apply(self, block: Block) -> torch.Tensor:
        """The block of the output."""
        return self.change(block).mul_(self.scale).add_(block.base)

    def _terms(self, block: Block) -> list[torch.Tensor]:
        """The weighted, thinned and rescaled task vectors."""
        masks = self.sparsifier.masks(block) if self.sparsifier else [None] * len(self.weights)
        factors = self._factors(block)
        terms = []
        for delta, mask, factor, weight in zip(
            block.deltas, masks, factors, self.weights, strict=True
        ):
            term = delta * (factor * weight)
            terms.append(term if mask is None else term.mul_(mask))
        return terms

    def _factors(self, block: Block) -> Sequence[float | torch.Tensor]:
        """What each task vector is multiplied with to make up for what was dropped."""
        if self.sparsifier is None or self.rescaling == "false":
            return [1.0] * len(self.weights)
        if self.rescaling == "density":
            return [1 / p if not isinstance(p, float) or p > 0 else 1.0
                    for p in self.sparsifier.chances(block)]  # fmt: skip
        totals = block.known(len(self.sparsifier.measures)).tolist()
        return [
            before / after if before >= SMALLEST_TOTAL and after >= SMALLEST_TOTAL else 1.0
            for before, after in totals
        ]

    def _total(self, terms: list[torch.Tensor]) -> torch.Tensor:
        total = _add(terms)
        divisor = sum(self.weights)
        if self.normalize and abs(divisor) >= 1e-8:
            total.div_(divisor)
        return total

    def _elected(self, terms: list[torch.Tensor]) -> torch.Tensor:
        """Only what has the elected sign; a tie, or nothing at all, elects plus.

        With the elected sign s, a term that agrees has s·term > 0, so the sum is s times the sum
        of the positive parts. Arithmetic instead of masks: see the engine's ``above``.
        """
        import torch

        votes = [term.sign() for term in terms] if self.elect == "count" else terms
        elected = torch.ones_like(terms[0]).copysign_(_add(votes).add_(0.0))  # no negative zero
        total, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
        for term, weight in zip(terms, self.weights, strict=True):
            agreeing = term.mul_(elected).clamp_(min=0.0)
            total.add_(agreeing)
            if self.normalize:
                divisor.add_(agreeing.sign_(), alpha=weight)
        if self.normalize:
            total.div_(one_for_zero(divisor))
        return total.mul_(elected)


def one_for_zero(divisor: torch.Tensor) -> torch.Tensor:
    """A divisor, in place, with 1 where it is 0."""
    return divisor.add_(divisor.abs().sign_().neg_().add_(1.0))


def _add(terms: list[torch.Tensor]) -> torch.Tensor:
    """The sum, in the first tensor when there is more than one."""
    total = terms[0].clone() if len(terms) == 1 else terms[0] + terms[1]
    for term in terms[2:]:
        total.add_(term)
    return total


def pipeline(
    arguments: Arguments,
    sparsify: Callable[[Arguments], Sparsifier] | None,
    *,
    elect: bool,
) -> Pipeline:
    """The pipeline for a tensor's arguments."""
    chosen = str(arguments.shared.get("consensus_method", "sum")) if elect else "none"
    return Pipeline(
        weights=arguments.each("weight"),
        sparsifier=sparsify(arguments) if sparsify else None,
        rescaling=str(arguments.shared.get("rescale", "false")),
        elect=chosen,
        normalize=arguments.flag("normalize"),
        scale=arguments.number("lambda") if "lambda" in arguments.shared else 1.0,
    )


@dataclass(frozen=True)
class Row:
    """One method of the family."""

    name: str
    title: str
    sparsify: Callable[[Arguments], Sparsifier]
    elect: bool
    normalize: bool
    rescale: str
    extra: tuple[Parameter, ...]
    summary: str
    use: str
    reference: str


TIES_PAPER = "TIES-Merging, https://arxiv.org/abs/2306.01708"
DARE_PAPER = "DARE, https://arxiv.org/abs/2311.03099"
DELLA_PAPER = "DELLA-Merging, https://arxiv.org/abs/2406.11617"
CRUMBS_PAPER = "Model Breadcrumbs, https://arxiv.org/abs/2312.06795"
VOTED = "Where the models disagree on a sign, the larger side wins and the other is left out."

TABLE = (
    Row("ties", "TIES", keep_largest, True, True, "false", (),
        f"Keeps the largest changes of each model and adds up those that agree in sign. {VOTED}",
        "Several fine-tunes of one base whose changes get in each other's way.", TIES_PAPER),
    Row("dare_linear", "Linear DARE", keep_by_chance, False, False, "true", (),
        "Drops a random share of each model's changes, scales up the rest and adds them to the "
        "base. What is dropped depends only on the seed, the tensor and the model.",
        "Fine-tunes with many small changes, of which most are not needed.", DARE_PAPER),
    Row("dare_ties", "DARE TIES", keep_by_chance, True, False, "true", (),
        f"Drops a random share of each model's changes, scales up the rest and adds up those that "
        f"agree in sign. {VOTED}",
        "Like dare_linear when models disagree.", DARE_PAPER),
    Row("della_linear", "Linear DELLA", keep_by_rank, False, False, "true", (EPSILON,),
        "Drops changes at random, small ones of a row more often than large ones, scales up the "
        "rest and adds them to the base. epsilon says how much rank matters.",
        "Like dare_linear, keeping large changes more often.", DELLA_PAPER),
    Row("della", "DELLA", keep_by_rank, True, True, "true", (EPSILON,),
        f"Drops changes at random, small ones of a row more often than large ones, and adds up "
        f"those that agree in sign. {VOTED}",
        "Like dare_ties, keeping large changes more often.", DELLA_PAPER),
    Row("breadcrumbs", "Model Breadcrumbs", keep_middle, False, False, "false", (GAMMA,),
        "Drops the largest and the smallest changes of each model and adds the middle ones to the "
        "base. gamma is the share of the largest, density the share that is kept.",
        "Many fine-tunes, some with outliers.", CRUMBS_PAPER),
    Row("breadcrumbs_ties", "Model Breadcrumbs with TIES", keep_middle, True, False, "false",
        (GAMMA,),
        f"Drops the largest and the smallest changes of each model and adds up those that agree "
        f"in sign. {VOTED}",
        "Like breadcrumbs when models disagree.", CRUMBS_PAPER),
)  # fmt: skip


def _register(row: Row) -> Method:
    normalize = Parameter("normalize", NORMALIZE, kind="bool", default=row.normalize)
    election = (ELECTION,) if row.elect else ()

    def formula(arguments: Arguments) -> Elementwise | WeightedSum:
        if not arguments.per_model:
            return WeightedSum((), deltas=True)  # nothing but the base
        steps = pipeline(arguments, row.sparsify, elect=row.elect)
        return Elementwise(
            steps.apply, steps.measures(), bool(steps.sparsifier and steps.sparsifier.whole_rows)
        )

    formula.__doc__ = row.summary
    return method(
        name=row.name,
        title=row.title,
        summary=row.summary,
        use=row.use,
        base="required",
        models=(0, None),
        parameters=(WEIGHT, DENSITY, *row.extra, normalize, rescale(row.rescale), LAMBDA,
                    *election, INT8_MASK),
        reference=row.reference,
        example=f"""\
merge_method: {row.name}
base_model: org/base
models:
  - {{model: org/A, parameters: {{weight: 0.5, density: 0.5}}}}
  - {{model: org/B, parameters: {{weight: 0.5, density: 0.5}}}}
dtype: bfloat16
""",
    )(formula)  # fmt: skip


METHODS_OF_TABLE = tuple(_register(row) for row in TABLE)

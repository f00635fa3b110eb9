"""From task vectors to the change of a tensor, in one fixed order.

sparsify → rescale → weight → elect → sum → normalize. A method chooses the steps; see ``sparse``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.methods.declaration import Arguments, Block, Largest, Parameter, Totals
from mergeloom.methods.sparsify import Sparsifier

if TYPE_CHECKING:
    import torch

SMALLEST_TOTAL = 1e-7

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

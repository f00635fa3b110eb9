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
        """Sums of |Δ| before and after thinning, shape (2, models)."""
        import torch

        sizes = block.deltas.abs_()
        before = sizes.sum(1)
        if self.sparsifier:
            for model, size in enumerate(sizes):
                self.sparsifier.thin(block, model, size)
        return torch.stack([before, sizes.sum(1)])

    def change(self, block: Block) -> torch.Tensor:
        """The merged task vector of a block, after normalization and without λ."""
        terms = self._terms(block)
        if self.elect == "none":
            return self._total(terms)
        return self._elected(block, terms)

    def apply(self, block: Block) -> torch.Tensor:
        """The block of the output."""
        change = self.change(block)
        if self.scale != 1.0:
            change.mul_(self.scale)
        return change.add_(block.base)

    def _terms(self, block: Block) -> list[torch.Tensor]:
        """The thinned, rescaled and weighted task vectors, in the place of the block's."""
        terms = []
        for i, (factor, weight) in enumerate(zip(self._factors(block), self.weights, strict=True)):
            term = block.deltas[i]
            if self.sparsifier:
                term = self.sparsifier.thin(block, i, term)
            product = factor * weight
            if not (isinstance(product, float) and product == 1.0):
                term.mul_(product)
            terms.append(term)
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
            for before, after in zip(*totals, strict=True)
        ]

    def _total(self, terms: list[torch.Tensor]) -> torch.Tensor:
        total = _added(terms)
        divisor = sum(self.weights)
        if self.normalize and abs(divisor) >= 1e-8:
            total.div_(divisor)
        return total

    def _elected(self, block: Block, terms: list[torch.Tensor]) -> torch.Tensor:
        """Only what has the elected sign; a tie, or nothing at all, elects plus."""
        import torch

        total, vote = block.spare("total").zero_(), block.spare("vote")
        for term in terms:
            total.add_(torch.sign(term, out=vote) if self.elect == "count" else term)
        minus = keep_elected(terms, total)
        divisor = agreeing_weight(block, terms, self.weights) if self.normalize else None
        merged = _added(terms)
        if divisor is not None:
            merged.div_(divisor)
        merged.view(minus.dtype).bitwise_xor_(minus)
        return merged


def keep_elected(terms: Sequence[torch.Tensor], votes: torch.Tensor) -> torch.Tensor:
    """Make the terms, in place, the sizes of what has the sign of ``votes``, zero elsewhere.

    Where minus is elected, every term's sign bit is flipped: then what is left of it above zero
    agrees. Arithmetic on the bits instead of masks, which are slow in torch on a CPU. Returns the
    elected sign bits, in place of the votes, to be flipped back in the result.
    """
    import torch

    kind, sign = {4: (torch.int32, -(2**31)), 8: (torch.int64, -(2**63))}[votes.itemsize]
    minus = votes.view(kind).bitwise_and_(sign)
    for term in terms:
        term.view(kind).bitwise_xor_(minus)
        term.clamp_(min=0.0)
    return minus


def agreeing_weight(
    block: Block, terms: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """The sum of the weights of the terms above zero, for dividing by: 1 where it is 0."""
    import torch

    divisor, vote = block.spare("divisor"), block.spare("vote")
    torch.sign(terms[0], out=divisor)
    if weights[0] != 1.0:
        divisor.mul_(weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        divisor.add_(torch.sign(term, out=vote), alpha=weight)
    if min(weights) > 0:  # where no term is above zero it does not matter
        return divisor.clamp_(min=min(weights))
    return one_for_zero(divisor)


def one_for_zero(divisor: torch.Tensor) -> torch.Tensor:
    """A divisor, in place, with 1 where it is 0."""
    return divisor.add_(divisor.abs().sign_().neg_().add_(1.0))


def _added(terms: list[torch.Tensor]) -> torch.Tensor:
    """The sum, in place of the first."""
    total = terms[0]
    for term in terms[1:]:
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

"""From task vectors to the change of a tensor, in one fixed order.

sparsify → rescale → weight → elect → sum → normalize. A method chooses the steps; see ``sparse``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mergeloom.methods.declaration import Arguments, Block, Largest, Parameter, Totals, Values
from mergeloom.methods.sparsify import Sparsifier, sizes

SMALLEST_TOTAL = 1e-7
SMALLEST_WEIGHT = 1e-30

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

    def magnitudes(self, block: Block) -> list[list[Values]]:
        """Sums of |Δ| before and after thinning, shape (2, models)."""
        before = sizes(block)
        after = self._thinned(block, before)
        return [[size.sum() for size in before], [size.sum() for size in after]]

    def change(self, block: Block) -> Values:
        """The merged task vector of a block, after normalization and without λ."""
        factors, weights = self._factors(block), self.weights
        if self.normalize and self.elect != "none" and min(weights) == max(weights) > 0:
            weights = [1.0] * len(weights)  # equal ones are divided out again
        terms = [
            scaled(thinned, factor * weight)
            for thinned, factor, weight in zip(
                self._thinned(block, block.deltas), factors, weights, strict=True
            )
        ]
        if self.elect == "none":
            total, divisor = added(terms), sum(self.weights)
            return total / divisor if self.normalize and abs(divisor) >= 1e-8 else total
        votes = (term.sign() for term in terms) if self.elect == "count" else terms
        return elected_sum(terms, votes, weights if self.normalize else None)

    def apply(self, block: Block) -> Values:
        """The block of the output."""
        return scaled(self.change(block), self.scale) + block.base

    def _thinned(self, block: Block, values: Iterable[Values]) -> Iterable[Values]:
        """The task vectors or their sizes, with zeros where they are dropped."""
        if self.sparsifier is None:
            return values
        return (self.sparsifier.thin(block, model, value) for model, value in enumerate(values))

    def _factors(self, block: Block) -> Sequence[float | Values]:
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


def added(terms: Iterable[Values]) -> Values:
    """Their sum, in order."""
    return functools.reduce(operator.add, terms)


def scaled(values: Values, factor: float | Values) -> Values:
    """The product; a factor of 1 costs nothing."""
    return values if isinstance(factor, float) and factor == 1.0 else values * factor


def elected_sum(
    terms: Sequence[Values], votes: Iterable[Values], weights: Sequence[float] | None
) -> Values:
    """The sum of the terms that have the sign of the votes' sum; a tie elects plus.

    With ``weights``, each term having that weight in it, it is divided by the sum of the weights
    of those terms, where that is not 0.
    """
    elected = (added(votes).sign() + 0.5).sign()
    agreeing = [(term * elected).clamp(min=0.0) for term in terms]
    merged = added(agreeing) * elected
    return merged if weights is None else merged / weight_above_zero(agreeing, weights)


def weight_above_zero(terms: Sequence[Values], weights: Sequence[float]) -> Values:
    """The sum of the weights of the terms above zero, for dividing by: 1 where it is 0."""
    total = added(scaled(term.sign(), w) for term, w in zip(terms, weights, strict=True))
    if min(weights) >= SMALLEST_WEIGHT:  # where no term is above zero it does not matter
        return total.clamp(min=min(weights))
    return total + (1.0 - total.abs().sign())


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

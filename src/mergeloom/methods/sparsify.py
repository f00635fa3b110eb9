"""Thinning task vectors out: by size, by rank or by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mergeloom.methods.declaration import (
    Arguments,
    Block,
    Largest,
    MethodError,
    Parameter,
    Values,
)

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

Thin = Callable[[Block, int, Values], Values]


@dataclass(frozen=True)
class Sparsifier:
    """How task vectors are thinned out.

    Args:
        thin: (block, model, its changes or their sizes) → those with zeros where they are dropped.
        chances: a block → for every model the probability each kept element had.
        measures: what must be known about the whole tensor.
        whole_rows: whether a row's elements depend on each other.
    """

    thin: Thin
    chances: Callable[[Block], Sequence[float | Values]]
    measures: tuple[Largest, ...] = ()
    whole_rows: bool = False


def sizes(block: Block) -> list[Values]:
    """How large the changes are."""
    return [delta.abs() for delta in block.deltas]


def partly(densities: Sequence[float], thin: Thin) -> Thin:
    """``thin`` for densities between 0 and 1: all or nothing needs no choice.

    Nothing is a product, so that NaN and infinity are not hidden.
    """

    def chosen(block: Block, model: int, values: Values) -> Values:
        if densities[model] >= 1:
            return values
        return thin(block, model, values) if densities[model] > 0 else values * 0.0

    return chosen


def keep_largest(arguments: Arguments) -> Sparsifier:
    """The ⌊density·n⌋ largest changes of each tensor, at least one if density > 0 (TIES)."""
    densities = arguments.each("density")

    def counts(nonzero: Sequence[int], size: int) -> list[list[int]]:
        del nonzero
        return [[size if d >= 1 else max(int(d * size), int(d > 0))] for d in densities]

    def thin(block: Block, model: int, values: Values) -> Values:
        return block.keep_largest(0, model, 0, values)

    measures = (Largest(sizes, counts),) if min(densities) < 1 else ()
    return Sparsifier(partly(densities, thin), lambda _block: densities, measures)


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

    def thin(block: Block, model: int, values: Values) -> Values:
        outliers = block.keep_largest(0, model, 0, values)
        return block.keep_largest(0, model, 1, values) - outliers

    measures = (Largest(sizes, counts),) if min(densities) < 1 else ()
    return Sparsifier(partly(densities, thin), lambda _block: densities, measures)


def keep_by_chance(arguments: Arguments) -> Sparsifier:
    """Every change with probability density (DARE, 2311.03099)."""
    densities = arguments.each("density")

    def thin(block: Block, model: int, values: Values) -> Values:
        return block.keep_by_chance(model, densities[model], values)

    return Sparsifier(partly(densities, thin), lambda _block: densities)


def keep_by_rank(arguments: Arguments) -> Sparsifier:
    """Larger changes of a row with higher probability (DELLA, 2406.11617).

    The smallest of n changes along axis 1 is kept with probability density − epsilon, the
    largest with density + epsilon, the others in equal steps between; equal ones with the mean of
    theirs, a single one with density.
    """
    densities, epsilons = arguments.each("density"), arguments.each("epsilon")
    for density, epsilon in zip(densities, epsilons, strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            most = min(density, 1 - density)
            raise MethodError(
                f"density {density:g} ± epsilon {epsilon:g} leaves 0 to 1; with this density "
                f"epsilon must be below {most:g}"
            )

    def chances(block: Block) -> list[float | Values]:
        return [
            block.mean_rank(model) * (2 * epsilon) + (density - epsilon)
            if 0 < density < 1
            else density
            for model, (density, epsilon) in enumerate(zip(densities, epsilons, strict=True))
        ]

    def thin(block: Block, model: int, values: Values) -> Values:
        density, epsilon = densities[model], epsilons[model]
        return block.keep_by_rank(model, density - epsilon, density + epsilon, values)

    return Sparsifier(
        partly(densities, thin), chances, whole_rows=any(0 < d < 1 for d in densities)
    )

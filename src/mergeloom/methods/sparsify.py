"""Thinning task vectors out: by size, by rank or by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.methods.declaration import Arguments, Block, Largest, MethodError, Parameter

if TYPE_CHECKING:
    import torch

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

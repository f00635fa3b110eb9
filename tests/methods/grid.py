"""Inputs whose differences every number format holds exactly, so that equals are really equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
import torch
from hypothesis import strategies as st
from inputs import NAMES, dtypes, random_tensor, seeds, shapes
from naive_sparse import Exact

import mergeloom
from mergeloom.engine.sizes import BLOCK, BLOCKS_PER_SPAN

SPAN = BLOCKS_PER_SPAN * BLOCK
steps = st.sampled_from([0, 1, 3, 40])
any_numbers = st.one_of(steps, st.none())


@dataclass(frozen=True)
class Drawn:
    """A base and other models of one shape.

    With ``step`` all numbers are sixteenths below 8 and the models differ from the base by at
    most ``step`` of them: many changes of the same size. With None they are normal numbers.
    """

    shape: tuple[int, ...]
    kinds: tuple[torch.dtype, ...]
    seed: int
    step: int | None

    def tensors(self) -> list[torch.Tensor]:
        if self.step is None:
            return [random_tensor(self.shape, kind, self.seed + i)
                    for i, kind in enumerate(self.kinds)]  # fmt: skip
        return grid(self.shape, self.kinds, self.seed, self.step)


def grid(
    shape: tuple[int, ...], kinds: tuple[torch.dtype, ...], seed: int, step: int
) -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    base = random.integers(-80, 81, shape)
    others = [base + random.integers(-step, step + 1, shape) for _ in kinds[1:]]
    return [torch.from_numpy(np.asarray(x / 16)).to(kind)
            for x, kind in zip([base, *others], kinds, strict=True)]  # fmt: skip


def drawn_models(smallest: int, largest: int, step=any_numbers):
    """A base and ``smallest`` to ``largest`` others, in one format or in mixed ones."""
    return st.integers(smallest + 1, largest + 1).flatmap(
        lambda n: st.builds(
            Drawn, shapes, st.one_of(dtypes.map(lambda d: (d,) * n), st.tuples(*[dtypes] * n)),
            seeds, step)
    )  # fmt: skip


def result_is_wide(tensors: list[torch.Tensor], out: torch.dtype | None) -> bool:
    return torch.float64 in {out, *(t.dtype for t in tensors)}


def fits(exact: Exact, dtype: torch.dtype) -> bool:
    """Whether a format can hold the result and what is added up for it."""
    limit = 30000 if dtype == torch.float16 else 1e30
    return not exact.value.size or float(exact.summands.max()) < limit


def assert_matches(got: torch.Tensor, exact: Exact, wide: bool, operations: float = 12) -> None:
    """To one rounding, except where rounding decides between two results."""
    got = torch.where(torch.from_numpy(np.array(exact.open)),
                      torch.from_numpy(np.array(exact.value)).to(got.dtype), got)  # fmt: skip
    naive.assert_rounded_once(got, exact.value, exact.summands, wide=wide, operations=operations)


def merge_named(
    method: str,
    models: Mapping[str, torch.Tensor],
    base: torch.Tensor,
    *,
    each: Mapping[str, Any] | None = None,
    out: torch.dtype | None = None,
    tensor: str = "w",
    seed: int = 0,
    threads: int | None = None,
    **shared: Any,
) -> torch.Tensor:
    """Merge one tensor of models of these names, all with the same parameters."""
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": name, "parameters": dict(each or {})} for name in models],
        "parameters": shared,
    }
    if out is not None:
        recipe["dtype"] = NAMES[out]
    given = {name: {tensor: t} for name, t in {**models, "base": base}.items()}
    options = mergeloom.Options(seed=seed)
    merged = mergeloom.merge_state_dicts(recipe, given, options=options, threads=threads)
    return merged[tensor]

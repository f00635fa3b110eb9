"""ties, dare, della and breadcrumbs against whole tensors in float64: masks, signs, sums."""

from __future__ import annotations

from typing import Any

import naive_sparse as plain
import numpy as np
import pytest
import torch
from grid import (
    BLOCK,
    SPAN,
    Drawn,
    assert_matches,
    drawn_models,
    fits,
    grid,
    merge_named,
    result_is_wide,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import dtypes, exact, one_tensor

ELECTING = {"ties", "dare_ties", "della", "breadcrumbs_ties"}
BY_SIZE = ["ties", "breadcrumbs", "breadcrumbs_ties"]
BY_CHANCE = ["dare_linear", "dare_ties", "della_linear", "della"]

# Products and sums of these with sixteenths are exact, so a tie of signs is one everywhere.
weights = st.sampled_from([1.0, 0.5, -1.0, 0.25, 2.0, 0.75, 0.0, -0.5])
densities = st.one_of(
    st.sampled_from([0.0, 1.0, 1e-6, 0.29, 0.5, 0.9, 0.999]), st.floats(0.01, 0.99)
)
gammas = st.sampled_from([0.0, 0.01, 0.3, 0.9, 1.0])
scales = st.sampled_from([1.0, 1.0, 0.5, -1.0, 0.0])
outs = st.one_of(st.none(), dtypes)


def lists(values):
    return st.lists(values, min_size=4, max_size=4)


shared_settings = st.fixed_dictionaries(
    {"normalize": st.booleans(), "lambda": scales,
     "rescale": st.sampled_from([True, False, "density"])}
)  # fmt: skip
elections = st.sampled_from(["sum", "count"])


def expected(
    method: str, base: np.ndarray, changes: list[np.ndarray], each: list[dict[str, Any]],
    masks: list[np.ndarray], shared: dict[str, Any],
) -> plain.Exact:  # fmt: skip
    factors: list[Any] = [1.0] * len(changes)
    if shared["rescale"] is True:
        factors = [plain.norm_factor(d, m) for d, m in zip(changes, masks, strict=True)]
    if shared["rescale"] == "density":
        chances = [chance_of(method, d, p) for d, p in zip(changes, each, strict=True)]
        factors = [1 / np.where(np.asarray(c) > 0, c, 1.0) for c in chances]
    return plain.family(
        base, changes, [p["weight"] for p in each], masks, factors,
        elect=shared.get("consensus_method", "none"),
        normalize=shared["normalize"], scale=shared["lambda"],
    )  # fmt: skip


def chance_of(method: str, delta: np.ndarray, own: dict[str, Any]) -> Any:
    if method in {"della", "della_linear"} and 0 < own["density"] < 1:
        return plain.rank_chances(delta, own["density"], own["epsilon"])
    return own["density"]


@settings(max_examples=100)
@given(drawn_models(1, 4), st.sampled_from(BY_SIZE), lists(weights), lists(densities),
       lists(gammas), shared_settings, elections, outs, st.booleans())  # fmt: skip
def test_kept_by_size(drawn, method, ws, ds, gs, shared, election, out, listed):
    base, *others = tensors = drawn.tensors()
    wide = result_is_wide(tensors, out)
    names = ["weight", "density"] + (["gamma"] if method != "ties" else [])
    each = [dict(zip(names, v, strict=False)) for v in zip(ws, ds, gs, strict=True)][: len(others)]
    if method in ELECTING:
        shared = {**shared, "consensus_method": election}
    changes = plain.deltas(exact(base), [exact(x) for x in others], wide)
    masks = [
        plain.trimmed(d, p["density"]) if method == "ties"
        else plain.middle(d, p["density"], p["gamma"])
        for d, p in zip(changes, each, strict=True)
    ]  # fmt: skip
    wanted = expected(method, exact(base), changes, each, masks, shared)
    assume(fits(wanted, out or base.dtype))
    got = one_tensor(method, others, each, base=base, base_listed=listed, out=out, **shared)
    assert got.dtype == (out or base.dtype)
    assert_matches(got, wanted, wide)


def drawn_mask(method: str, name: str, other: torch.Tensor, base: torch.Tensor, own) -> np.ndarray:
    """What the seed keeps of a model: the only thing the plain formula cannot know."""
    alone = merge_named(
        method, {name: other}, base, each={**own, "weight": 1.0}, out=torch.float64,
        rescale=False, normalize=False,
    )  # fmt: skip
    return (exact(alone) != exact(base)).astype(float)


@settings(max_examples=100)
@given(drawn_models(1, 3, st.sampled_from([1, 40])), st.sampled_from(BY_CHANCE), lists(weights),
       lists(densities), lists(st.sampled_from([0.0, 0.5, 0.999])), shared_settings, elections,
       outs)  # fmt: skip
def test_kept_by_chance(drawn, method, ws, ds, es, shared, election, out):
    base, *others = tensors = drawn.tensors()
    wide = result_is_wide(tensors, out)
    each = [{"weight": w, "density": d} for w, d in zip(ws, ds, strict=True)][: len(others)]
    if method.startswith("della"):
        for own, share in zip(each, es, strict=False):
            own["epsilon"] = share * min(own["density"], 1 - own["density"])
    if method in ELECTING:
        shared = {**shared, "consensus_method": election}
    changes = plain.deltas(exact(base), [exact(x) for x in others], wide)
    masks = [drawn_mask(method, f"m{i}", x, base, each[i]) for i, x in enumerate(others)]
    for mask, change, own in zip(masks, changes, each, strict=True):
        if own["density"] in (0.0, 1.0):
            assert np.array_equal(mask, (change != 0) * own["density"])
    wanted = expected(method, exact(base), changes, each, masks, shared)
    assume(fits(wanted, out or base.dtype))
    got = one_tensor(method, others, each, base=base, out=out, **shared)
    assert_matches(got, wanted, wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("step", [1, 40])
def test_equals_over_many_blocks_and_ranges(dtype, step):
    """Exactly ⌊density·n⌋, the first of equals, wherever the threshold falls."""
    shape = (SPAN + 70001,)
    base, one, two = grid(shape, (dtype,) * 3, 5 + step, step)
    changes = [exact(x) - exact(base) for x in (one, two)]
    each = [{"weight": 1.0, "density": 0.29}, {"weight": 0.5, "density": 0.8}]
    wanted = plain.combined(
        [d * plain.trimmed(d, p["density"]) for d, p in zip(changes, each, strict=True)],
        [1.0, 0.5], elect="sum", normalize=True,
    )[0]  # fmt: skip
    got = one_tensor("ties", [one, two], each, base=base, out=torch.float64)
    assert np.abs(exact(got) - exact(base) - wanted).max() < 1e-12
    if step > 1:
        each = [{"weight": 1.0, "density": 0.5, "gamma": 0.2}]
        got = one_tensor("breadcrumbs", [one], each, base=base, out=dtype)
        assert np.array_equal(exact(got) - exact(base),
                              changes[0] * plain.middle(changes[0], 0.5, 0.2))  # fmt: skip


@pytest.mark.parametrize("count", [1, BLOCK, SPAN - 1, SPAN, SPAN + 1, SPAN + BLOCK, 2 * SPAN])
def test_a_threshold_at_the_edge_of_a_block_or_range(count):
    """All changes are equal, so the first ``count`` elements are kept and no other."""
    size = 2 * SPAN + 3
    base = torch.zeros(size, dtype=torch.bfloat16)
    other = torch.full((size,), -0.5, dtype=torch.bfloat16)
    density = (count + 0.5) / size
    got = one_tensor("ties", [other], [{"weight": 1.0, "density": density}], base=base)
    kept = got != 0
    assert int(kept.sum()) == count
    assert bool(kept[:count].all())


def test_thresholds_between_numbers_that_differ_in_their_last_bit():
    steps = torch.arange(3 * 65536, dtype=torch.int32)
    other = (steps[torch.randperm(len(steps), generator=torch.Generator().manual_seed(1))]
             + 0x3F7FFF00).view(torch.float32)  # fmt: skip
    base = torch.zeros_like(other)
    for count in (1, 77, 65536, 65537, 131072, 196607):
        density = (count + 0.5) / len(other)
        got = one_tensor("ties", [other], [{"weight": 1.0, "density": density}], base=base)
        assert torch.equal(got, torch.where(other >= other.sort(descending=True)[0][count - 1],
                                            other, base))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_smallest_and_largest_numbers_are_told_apart(dtype):
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max / 4
    other = torch.tensor([tiny / 8, 0.0, -tiny / 4, tiny, -huge, huge / 2, -0.0], dtype=dtype)
    base = torch.zeros(7, dtype=dtype)
    order = [4, 5, 3, 2, 0]
    for count in range(1, 6):
        got = one_tensor("ties", [other], [{"weight": 1.0, "density": (count + 0.1) / 7}],
                         base=base, out=dtype)  # fmt: skip
        assert got.nonzero().flatten().tolist() == sorted(order[:count])


def test_an_odd_matrix_of_all_methods_at_once():
    """The same numbers for a matrix and for its flat self, except where rows matter."""
    drawn = Drawn((7, 11), (torch.float32,) * 3, 3, 40)
    base, one, two = drawn.tensors()
    each = [{"weight": 1.0, "density": 0.4}] * 2
    for method in ["ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"]:
        matrix = one_tensor(method, [one, two], each, base=base)
        flat = one_tensor(method, [one.flatten(), two.flatten()], each, base=base.flatten())
        assert torch.equal(matrix.flatten(), flat), method

"""What is dropped at random: how often, how independently, and that only the seed decides it."""

from __future__ import annotations

import itertools
import math

import naive_sparse as plain
import numpy as np
import pytest
import torch
from grid import BLOCK, SPAN, grid, merge_named
from inputs import exact, one_tensor, same_bits

F64 = torch.float64
ONES = torch.ones(3 * BLOCK, dtype=torch.float32)


def mask(
    density: float, size: int = 3 * BLOCK, *, name: str = "m0", method="dare_linear", **how
) -> np.ndarray:
    """The mask of a model of this name: zeros plus what is left of ones."""
    base = torch.zeros(size)
    got = merge_named(method, {name: torch.ones(size)}, base, rescale=False,
                      each={"weight": 1.0, "density": density}, **how)  # fmt: skip
    assert set(np.unique(exact(got))) <= {0.0, 1.0}
    return exact(got).astype(bool)


def assert_fraction(hits: np.ndarray, probability: float) -> None:
    """Within five standard deviations, which one in two million honest masks is not."""
    deviation = math.sqrt(probability * (1 - probability) / hits.size)
    assert abs(hits.mean() - probability) < 5 * deviation, (hits.mean(), probability)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_share_that_is_kept(density):
    kept = mask(density)
    for part in (kept, kept[::2], kept[1::2], kept[:BLOCK], kept[-BLOCK:], kept[:1000]):
        assert_fraction(part, density)


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_independence(density):
    """Of models, tensors, seeds, neighbours, blocks, and of the two halves of a random word."""
    kept = mask(density)
    others = {
        "model": mask(density, name="m1"),
        "tensor": mask(density, tensor="v"),
        "seed": mask(density, seed=1),
        "large seed": mask(density, seed=2**31),
        **{f"neighbour {i}": np.roll(kept, i) for i in (1, 2, 3, 4, 64, BLOCK, 2 * BLOCK)},
    }
    for other in others.values():
        assert_fraction(other, density)
        assert_fraction(kept & other, density**2)
    pairs = kept[: BLOCK * 2].reshape(-1, 2)
    assert_fraction(pairs.all(1), density**2)


def test_the_same_mask_whatever_is_merged():
    """Its model by name, its tensor by name; not values, formats, company, order or method."""
    kept = mask(0.4)
    assert np.array_equal(mask(0.4, out=F64), kept)
    assert np.array_equal(mask(0.4, method="dare_ties"), kept)
    assert np.array_equal(mask(0.4, method="dare_linear", threads=5), kept)
    assert not (mask(0.3) & ~kept).any()  # a smaller density keeps a part of it
    base = torch.zeros(3 * BLOCK)
    for names in (["m0", "m1"], ["m1", "m0"], ["a", "m0", "b"]):
        models = {n: ONES * 4**i for i, n in enumerate(names)}
        got = merge_named("dare_linear", models, base, rescale=False,
                          each={"weight": 1.0, "density": 0.4})  # fmt: skip
        here = names.index("m0")
        assert np.array_equal(exact(got) // 4**here % 4 == 1, kept)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_models_in_any_order(method):
    base, *others = grid((50, 41), (torch.float32,) * 4, 8, 40)
    own = {"weight": 0.5, "density": 0.6, "epsilon": 0.3}
    names = ["x", "y", "z"]
    results = [
        merge_named(method, {names[i]: others[i] for i in order}, base, each=own, out=F64)
        for order in itertools.permutations(range(3))
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-14, atol=1e-14)
    pair = [merge_named(method, {names[i]: others[i] for i in order}, base, each=own)
            for order in ((0, 1), (1, 0))]  # fmt: skip
    assert same_bits(*pair)


def test_dividing_by_the_keep_probability_is_right_on_average():
    base, other = grid((4, 16), (torch.float64,) * 2, 3, 40)
    delta = exact(other) - exact(base)
    for method, own in (("dare_linear", {"density": 0.3}),
                        ("della_linear", {"density": 0.5, "epsilon": 0.4})):  # fmt: skip
        runs = 300
        total = sum(
            exact(merge_named(method, {"m": other}, base, each={"weight": 1.0, **own},
                              rescale="density", seed=seed)) - exact(base)
            for seed in range(runs)
        )  # fmt: skip
        chance = plain.rank_chances(delta, 0.5, 0.4) if method == "della_linear" else 0.3
        deviation = np.abs(delta) * np.sqrt((1 - chance) / chance / runs)
        assert (np.abs(total / runs - delta) <= 5 * deviation + 1e-12).all()


@pytest.mark.parametrize(
    ("method", "own"),
    [("dare_linear", {"density": 0.2}), ("della_linear", {"density": 0.5, "epsilon": 0.3}),
     ("ties", {"density": 0.2}), ("breadcrumbs", {"density": 0.2, "gamma": 0.1})],
)  # fmt: skip
def test_rescaling_keeps_the_sum_of_sizes_exactly(method, own):
    base, other = grid((701, 307), (torch.bfloat16,) * 2, 4, 40)
    base = base * 0
    got = one_tensor(method, [other], [{"weight": 1.0, **own}], base=base, out=F64, rescale=True)
    wanted = np.abs(exact(other)).sum()
    assert abs(np.abs(exact(got)).sum() / wanted - 1) < 1e-12
    assert 0 < np.count_nonzero(exact(got)) < 0.7 * got.numel()


def test_della_keeps_larger_changes_of_a_row_more_often():
    rows, n = 6000, 8
    random = np.random.default_rng(2)
    delta = np.stack([random.permutation(np.arange(1, n + 1)) for _ in range(rows)]) / 16
    other = torch.from_numpy(delta * random.choice([-1, 1], delta.shape))
    got = merge_named("della_linear", {"m": other}, torch.zeros_like(other), rescale=False,
                      each={"weight": 1.0, "density": 0.5, "epsilon": 0.25})  # fmt: skip
    kept = exact(got) != 0
    for rank in range(n):
        assert_fraction(kept[delta * 16 == rank + 1], 0.25 + 0.5 * rank / (n - 1))


def test_della_of_a_worked_example():
    """Keep probabilities and both ways to rescale; with injected masks these are golden."""
    delta = torch.tensor([[0.125, -0.25, 0.0, 0.5], [0.375, -0.0625, 0.75, -0.625]], dtype=F64)
    chances = np.array([[5, 7, 3, 9], [5, 3, 9, 7]]) / 12
    own = {"weight": 1.0, "density": 0.5, "epsilon": 0.25}
    base = torch.zeros_like(delta)
    seen = np.zeros(delta.shape, bool)
    for seed in range(12):
        by_chance, by_norm, bare = (
            exact(merge_named("della_linear", {"m": delta}, base, each=own, rescale=r, seed=seed))
            for r in ("density", True, False)
        )
        kept = bare != 0
        np.testing.assert_allclose(by_chance, bare / chances, rtol=1e-6)
        if kept.any():
            np.testing.assert_allclose(by_norm, bare * (2.6875 / np.abs(bare).sum()), rtol=1e-12)
        seen |= kept
    assert seen.sum() == 7  # all but the zero


def test_della_with_rows_of_one_element_uses_density():
    kept = merge_named("della_linear", {"m": torch.ones(9000, 1)}, torch.zeros(9000, 1),
                       each={"weight": 1.0, "density": 0.3, "epsilon": 0.2},
                       rescale="density", out=F64)  # fmt: skip
    assert_fraction(exact(kept) != 0, 0.3)
    np.testing.assert_allclose(np.unique(exact(kept)), [0, 1 / 0.3], rtol=1e-6)


SAME = {
    "ties": {"density": 0.3},
    "dare_ties": {"density": 0.3},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1},
    "sce": {},
}


@pytest.mark.parametrize("method", SAME)
def test_threads_do_not_change_a_bit(method):
    shape = (SPAN // 1000 + 40, 1009)
    base, one, two = grid(shape, (torch.bfloat16,) * 3, 1, 3)
    own = {} if method == "sce" else {"weight": 0.6, **SAME[method]}
    shared = {"select_topk": 0.4} if method == "sce" else {"rescale": True}
    first, *others = (
        merge_named(method, {"one": one, "two": two}, base, each=own, threads=threads,
                    out=torch.float32, **shared)
        for threads in (1, 2, 5)
    )  # fmt: skip
    for other in others:
        assert same_bits(first, other)

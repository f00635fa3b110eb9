"""sce, nearswap, arcee_fusion, ram and consensus against whole tensors in float64."""

from __future__ import annotations

import naive_sparse as plain
import numpy as np
import pytest
import torch
from grid import SPAN, assert_matches, drawn_models, fits, grid, result_is_wide, steps
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import dtypes, exact, one_tensor

outs = st.one_of(st.none(), dtypes)
weights = st.sampled_from([1.0, 0.5, -1.0, 0.25, 2.0, 0.0])
shares = st.one_of(st.sampled_from([0.0, 1.0, 1e-6, 0.29, 0.5, 0.999]), st.floats(1e-3, 1.0))


def prepared(drawn, out):
    base, *others = tensors = drawn.tensors()
    wide = result_is_wide(tensors, out)
    changes = plain.deltas(exact(base), [exact(x) for x in others], wide)
    return base, others, wide, changes


def check(wanted, method, base, others, wide, out, each=None, **shared):
    assume(fits(wanted, out or base.dtype))
    got = one_tensor(method, others, each or [{}] * len(others), base=base, out=out, **shared)
    assert got.dtype == (out or base.dtype)
    assert_matches(got, wanted, wide)


@settings(max_examples=80)
@given(drawn_models(1, 4, steps), shares, outs)
def test_sce(drawn, share, out):
    base, others, wide, changes = prepared(drawn, out)
    wanted = plain.sce(exact(base), changes, share)
    check(wanted, "sce", base, others, wide, out, select_topk=share)


@given(drawn_models(2, 3), outs)
def test_sce_without_selection(drawn, out):
    base, others, wide, changes = prepared(drawn, out)
    wanted = plain.sce(exact(base), changes, 1.0)
    near = np.abs(sum(changes)) <= 1e-5 * sum(map(np.abs, changes))
    wanted = plain.Exact(wanted.value, wanted.summands, near & (sum(changes) != 0))
    check(wanted, "sce", base, others, wide, out)


def test_sce_weighs_tiny_changes_by_their_energy():
    base, one, two = grid((40, 30), (torch.float64,) * 3, 4, 3)
    for scale in (2.0**-20, 2.0**-60):
        a, b = base * 0 + (one - base) * scale, base * 0 + (two - base) * scale * 3
        wanted = plain.sce(exact(base) * 0, [exact(a), exact(b)], 1.0).value
        got = one_tensor("sce", [a, b], [{}, {}], base=base * 0)
        np.testing.assert_allclose(exact(got), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_sce_keeps_the_first_of_equal_variances_over_ranges(share):
    base, one, two = grid((SPAN + 999,), (torch.bfloat16,) * 3, 2, 1)
    wanted = plain.sce(exact(base), [exact(x) - exact(base) for x in (one, two)], share)
    got = one_tensor("sce", [one, two], [{}, {}], base=base, out=torch.float32, select_topk=share)
    assert_matches(got, wanted, wide=False)


distances = st.sampled_from([0.0, -1.0, 1e-9, 1e-3, 1 / 16, 0.1, 3.0, 100.0])


@given(drawn_models(1, 1), distances, outs)
def test_nearswap(drawn, t, out):
    base, others, wide, _ = prepared(drawn, out)
    wanted = plain.nearswap(exact(base), exact(others[0]), t)
    check(wanted, "nearswap", base, others, wide, out, t=t)


@given(drawn_models(1, 1), outs)
def test_arcee_fusion(drawn, out):
    base, others, wide, _ = prepared(drawn, out)
    wanted = plain.fusion(exact(base), exact(others[0]))
    check(wanted, "arcee_fusion", base, others, wide, out)


def test_arcee_fusion_of_more_than_a_million_elements_takes_no_sample():
    """The quartiles of 2,200,000 scores, exact: scores here are far apart."""
    random = np.random.default_rng(3)
    base = random.integers(-80, 81, (1100, 2000)) / 16
    change = random.integers(-3, 4, base.shape) / 16
    wanted = plain.fusion(base, base + change)
    assert wanted.open.mean() < 0.01
    got = one_tensor("arcee_fusion", [torch.from_numpy(base + change)], [{}],
                     base=torch.from_numpy(base))  # fmt: skip
    assert np.array_equal(exact(got)[~wanted.open], wanted.value[~wanted.open])


@pytest.mark.parametrize("size", [1e-4, 5e-4, 5e-3])
def test_arcee_fusion_sees_the_divergence_of_small_changes(size):
    """It is some 1e-8 of sums near 1: in float32 rounding would choose the rows."""
    random = np.random.default_rng(5)
    base = torch.from_numpy(random.standard_normal((60, 999)) * 0.02).bfloat16()
    scales = np.linspace(0.5, 2, 60)[:, None] * size
    other = (base + torch.from_numpy(random.standard_normal((60, 999)) * scales)).bfloat16()
    wanted = plain.fusion(exact(base), exact(other))
    assert wanted.open.mean() < 0.01
    got = one_tensor("arcee_fusion", [other], [{}], base=base)
    assert np.array_equal(exact(got)[~wanted.open], wanted.value[~wanted.open])


def test_arcee_fusion_where_rows_hold_one_element_keeps_the_base():
    base, other = torch.arange(6.0).view(6, 1), torch.arange(6.0).view(6, 1) * 2 + 1
    assert torch.equal(one_tensor("arcee_fusion", [other], [{}], base=base), base)


@pytest.mark.parametrize("row", [None, 0, 1, 333, 500, 998, 999])
def test_arcee_fusion_where_no_sample_has_a_score(row):
    """A number added to all rows alike is no score; one row that changes is enough to take all."""
    random = np.random.default_rng(7)
    base = torch.from_numpy(random.integers(-99, 99, (1000, 70)) / 64)
    other = base + 1 / 8
    if row is not None:
        other[row, 3] += 1
    wanted = base if row is None else other
    assert torch.equal(one_tensor("arcee_fusion", [other], [{}], base=base), wanted)


epsilons = st.sampled_from([0.0, 1e-5, 1 / 16, 0.1, 0.2, 10.0])


@given(drawn_models(1, 4), epsilons, outs)
def test_ram(drawn, epsilon, out):
    base, others, wide, changes = prepared(drawn, out)
    wanted = plain.ram(exact(base), changes, epsilon)
    check(wanted, "ram", base, others, wide, out, epsilon=epsilon)


@given(drawn_models(1, 4), epsilons, st.sampled_from([0.0, 0.1, 2.0, -0.5]),
       st.sampled_from([0.0, 0.2, 5.0]), outs)  # fmt: skip
def test_ramplus(drawn, epsilon, r, alpha, out):
    base, others, wide, changes = prepared(drawn, out)
    wanted = plain.ram(exact(base), changes, epsilon, r, alpha)
    check(wanted, "ramplus_tl", base, others, wide, out, epsilon=epsilon, r=r, alpha=alpha)


four_weights = st.lists(weights, min_size=4, max_size=4)
thresholds = st.lists(st.sampled_from([1.0, 0.0, 0.4, 3.0, -1.0]), min_size=4, max_size=4)


@settings(max_examples=80)
@given(drawn_models(1, 4), four_weights, thresholds, st.integers(0, 5), st.booleans(), outs)
def test_consensus_ta(drawn, ws, limits, k, normalize, out):
    base, others, wide, changes = prepared(drawn, out)
    n = len(others)
    merged = plain.combined(changes, ws[:n], normalize=normalize)
    wanted = plain.consensus(exact(base), changes, merged, limits[:n], k)
    each = [{"weight": w, "lambda": v, "k": k} for w, v in zip(ws, limits, strict=True)][:n]
    check(wanted, "consensus_ta", base, others, wide, out, each, normalize=normalize)


@settings(max_examples=80)
@given(drawn_models(1, 4), four_weights, thresholds, st.integers(0, 5),
       st.lists(shares, min_size=4, max_size=4), st.booleans(),
       st.sampled_from([False, True, "density"]), outs)  # fmt: skip
def test_consensus_ties(drawn, ws, limits, k, ds, normalize, rescale, out):
    base, others, wide, changes = prepared(drawn, out)
    n = len(others)
    masks = [plain.trimmed(d, p) for d, p in zip(changes, ds, strict=False)]
    factors = {
        False: [1.0] * n,
        True: [plain.norm_factor(d, m) for d, m in zip(changes, masks, strict=True)],
        "density": [1 / p if p else 1.0 for p in ds[:n]],
    }[rescale]
    thinned = [d * m * f for d, m, f in zip(changes, masks, factors, strict=True)]
    merged = plain.combined(thinned, ws[:n], elect="sum", normalize=normalize,
                            exact=all(f == 1 for f in factors))  # fmt: skip
    wanted = plain.consensus(exact(base), changes, merged, limits[:n], k)
    each = [{"weight": w, "lambda": v, "k": k, "density": d}
            for w, v, d in zip(ws, limits, ds, strict=True)][:n]  # fmt: skip
    check(wanted, "consensus_ties", base, others, wide, out, each,
          normalize=normalize, rescale=rescale)  # fmt: skip

"""multislerp, karcher and model_stock against whole vectors in float64."""

from __future__ import annotations

import naive_geometric as plain
import numpy as np
import pytest
import torch
from grid import BLOCK, drawn_models, fits, result_is_wide
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import dtypes, exact, one_tensor, random_tensor
from naive import assert_rounded_once
from naive_sparse import certain

import mergeloom

outs = st.one_of(st.none(), dtypes)
weights = st.lists(st.one_of(st.sampled_from([1.0, 0.5, 0.25]), st.floats(0.05, 3)),
                   min_size=4, max_size=4)  # fmt: skip


def angle_error(wide: bool, dtype: torch.dtype) -> float:
    """Relative error of coefficients: inner products are float32 sums for 16-bit outputs."""
    return 2.0**-42 if wide else 2.0**-17 if dtype in (torch.float16, torch.bfloat16) else 2.0**-20


def check(got, value, tensors, wide, out, conditioning=1.0):
    """``conditioning``: how many times an error of an inner product grows in a coefficient."""
    assert got.dtype == (out or tensors[0].dtype)
    sizes = np.abs(value) + sum(np.abs(exact(t)) for t in tensors)
    unit = 2.0**-52 if wide else 2.0**-23
    # A coefficient's error adds a bit of every model; sizes of elements may be far apart.
    slack = angle_error(wide, got.dtype) * conditioning / unit
    assert_rounded_once(got, value, sizes * (8 + slack), wide=wide, operations=1)


def usable(values: np.ndarray, tensors, dtype) -> bool:
    return bool(np.isfinite(values).all()) and fits(certain(values, np.abs(values) * 2), dtype)


@settings(max_examples=80)
@given(drawn_models(1, 4), weights, st.booleans(), st.booleans(), outs)
def test_multislerp(drawn, ws, with_base, normalize, out):
    base, *others = drawn.tensors()
    used = [base, *others] if with_base else others
    wide = result_is_wide(used, out)
    origin = exact(base) if with_base else None
    ws = ws[: len(others)]
    value, shortest = plain.multislerp(
        [exact(x) for x in others], ws, base=origin, normalize=normalize
    )
    assume(shortest > 0.05)
    assume(usable(value, used, out or used[0].dtype))
    got = one_tensor(
        "multislerp", others, [{"weight": w} for w in ws], base=base if with_base else None,
        out=out, normalize_weights=normalize,
    )  # fmt: skip
    check(got, value, used, wide, out, max(1.0, sum(ws)) ** 2 / shortest**2)


@settings(max_examples=80)
@given(drawn_models(0, 3), st.integers(0, 12), outs)
def test_karcher(drawn, max_iter, out):
    tensors = drawn.tensors()
    wide = result_is_wide(tensors, out)
    value, widest = plain.karcher([exact(x) for x in tensors], max_iter)
    assume(widest < 2.8)
    assume(usable(value, tensors, out or tensors[0].dtype))
    got = one_tensor("karcher", tensors, [{}] * len(tensors), out=out, max_iter=max_iter)
    check(got, value, tensors, wide, out, 4 / np.sin(max(widest, 0.35)) ** 2 if widest > 1 else 8)


@settings(max_examples=80)
@given(drawn_models(2, 4), st.booleans(), outs)
def test_model_stock(drawn, filter_wise, out):
    tensors = base, *others = drawn.tensors()
    wide = result_is_wide(tensors, out)
    value, denominator = plain.model_stock(
        exact(base), [exact(x) for x in others], filter_wise=filter_wise
    )
    assume(denominator > 0.05)
    assume(usable(value, tensors, out or base.dtype))
    got = one_tensor("model_stock", others, [{}] * len(others), base=base, out=out,
                     filter_wise=filter_wise)  # fmt: skip
    check(got, value, tensors, wide, out, len(others) / denominator**2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tensors_of_many_blocks_and_ranges(dtype):
    shape = (9, BLOCK + 7)
    tensors = base, *others = [random_tensor(shape, dtype, i) for i in range(4)]
    values = [exact(x) for x in others]
    each = [{"weight": w} for w in (0.5, 0.3, 0.2)]
    wanted, _ = plain.multislerp(values, [0.5, 0.3, 0.2])
    check(one_tensor("multislerp", others, each), wanted, others, False, None, 4)
    wanted, _ = plain.karcher(values)
    check(one_tensor("karcher", others, [{}] * 3), wanted, others, False, None, 8)
    for filter_wise in (False, True):
        wanted, _ = plain.model_stock(exact(base), values, filter_wise=filter_wise)
        got = one_tensor("model_stock", others, [{}] * 3, base=base, filter_wise=filter_wise)
        check(got, wanted, tensors, False, None, 8)


def merged(method, models, base=None, each=None, **shared):
    names = [f"m{i}" for i in range(len(models))]
    recipe = {
        "merge_method": method,
        "models": [{"model": n, "parameters": p}
                   for n, p in zip(names, each or [{}] * len(names), strict=True)],
        "parameters": shared,
        **({"base_model": "base"} if base is not None else {}),
    }  # fmt: skip
    given_models = {n: {"layer.w": t} for n, t in zip(names, models, strict=True)}
    if base is not None:
        given_models["base"] = {"layer.w": base}
    return mergeloom.merge_state_dicts(recipe, given_models)["layer.w"]


def weighted(*values):
    return [{"weight": w} for w in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 5, 999, 3 * BLOCK])
def test_three_vectors_that_cancel_have_no_mean_direction(dtype, size):
    x = random_tensor((size,), dtype, 3) + 1
    with pytest.raises(mergeloom.MergeError, match=r"layer\.w.*cancel"):
        merged("multislerp", [x, x, -x], each=weighted(1.0, 1.0, 2.0))
    one, two = x, torch.roll(x, 1)
    if size > 1:
        with pytest.raises(mergeloom.MergeError, match=r"layer\.w.*cancel"):
            merged("multislerp", [one, two, -one, -two], each=weighted(1, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_opposite_pair_gives_its_weighted_sum(dtype):
    x = random_tensor((300, 7), dtype, 3)
    base = torch.zeros_like(x)
    for basis in (None, base):
        got = merged("multislerp", [x, -x], basis, each=weighted(0.75, 0.75))
        assert bool((got == 0).all())
        got = merged("multislerp", [x, -2 * x], basis, each=weighted(1.0, 1.0))
        assert torch.equal(got, (-0.5 * x.double()).to(dtype))


@pytest.mark.parametrize("ws", [(1.0, -1.0), (0.1, 0.2, -0.3), (0.0, 0.0)], ids=str)
def test_weights_of_multislerp_that_sum_to_zero_are_refused(ws):
    models = [random_tensor((4,), torch.float32, i) for i in range(len(ws))]
    with pytest.raises(mergeloom.RecipeError, match="sum to zero"):
        merged("multislerp", models, each=weighted(*ws))


def test_changes_of_nothing_give_the_base_and_eps_may_be_zero():
    x = random_tensor((6, 5), torch.float32, 1)
    other = random_tensor((6, 5), torch.float32, 2)
    for count in (2, 3):
        assert torch.equal(merged("multislerp", [x] * count, x, weighted(*[1.0] * count)), x)
        assert torch.equal(merged("model_stock", [x] * count, x), x)
    for models in ([x, x, x], [x, other, torch.zeros_like(x)]):
        plainly, default = (
            merged("multislerp", models, each=weighted(1, 1, 1), eps=e) for e in (0.0, 1e-8)
        )
        assert torch.allclose(plainly, default, rtol=1e-6, atol=1e-6)
    assert bool((merged("karcher", [x * 0, x * 0]) == 0).all())


def test_opposite_models_are_noted(tmp_path, model):
    x = {"w": random_tensor((40, 3), torch.float32, 1)}
    a, b = model("a", x), model("b", {"w": -x["w"]})
    recipe = {"merge_method": "karcher", "models": [{"model": str(a)}, {"model": str(b)}]}
    done = mergeloom.merge(recipe, tmp_path / "out")
    assert "opposite" in done.notes["w"][0]
    got = merged("karcher", [x["w"], -x["w"]])
    assert torch.allclose(got, x["w"], rtol=1e-6)


def test_model_stock_at_its_singularity_is_the_base_and_beyond_it_says_so(tmp_path, model):
    base = random_tensor((40, 3), torch.float32, 1)
    step = random_tensor((40, 3), torch.float32, 2).round()
    base = base.round()
    assert torch.equal(merged("model_stock", [base + step, base - step], base), base)
    turned = -step + torch.roll(step, 3) * 0.25
    folders = [str(model(n, {"w": base + d}))
               for n, d in (("base", 0 * step), ("a", step), ("b", turned))]  # fmt: skip
    recipe = {"merge_method": "model_stock", "base_model": folders[0],
              "models": [{"model": f} for f in folders[1:]]}  # fmt: skip
    assert "outside 0 to 1" in mergeloom.merge(recipe, tmp_path / "out").notes["w"][0]


def test_identical_models_are_the_result():
    x = random_tensor((50, 6), torch.float32, 1)
    base = random_tensor((50, 6), torch.float32, 2)
    for count in (2, 3, 5):
        assert torch.allclose(merged("karcher", [x] * count), x, rtol=1e-6)
        assert torch.allclose(merged("multislerp", [x] * count, each=weighted(*[0.4] * count)),
                              x, rtol=1e-6)  # fmt: skip
        assert torch.allclose(merged("model_stock", [x] * count, base), x, rtol=1e-6, atol=2e-6)

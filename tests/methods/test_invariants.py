"""What must hold whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from inputs import dtypes, numbers, one_tensor, random_tensor, same_bits, seeds, shapes

import mergeloom

ROWS = {"nuslerp_flatten": False}
COLUMNS = {"nuslerp_flatten": False, "nuslerp_row_wise": True}


def weighted(count: int, weight: float = 1.0) -> list[dict[str, float]]:
    return [{"weight": weight}] * count


def close(a: torch.Tensor, b: torch.Tensor, units: int = 4) -> bool:
    step = torch.finfo(a.dtype).eps * units
    return bool(((a.double() - b.double()).abs() <= step * (a.abs() + b.abs()).double()).all())


@given(shapes, dtypes, seeds, st.integers(1, 4), st.booleans())
def test_identical_models_give_that_model(shape, dtype, seed, count, with_base):
    x = random_tensor(shape, dtype, seed)
    base = x.clone() if with_base else None
    cases = [("linear", count, {}), ("passthrough", 1, {}), ("nuslerp", 2, {}),
             ("nuslerp", 2, ROWS), ("nuslerp", 2, COLUMNS)]  # fmt: skip
    for method, n, shared in cases:
        each = weighted(n, 0.4) if method != "passthrough" else [{}]
        basis = base if method == "nuslerp" else None
        assert close(one_tensor(method, [x] * n, each, base=basis, **shared), x, 1), method
    # Deltas of nothing change not one bit.
    assert torch.equal(one_tensor("task_arithmetic", [x] * count, weighted(count), base=x), x)


@given(shapes, dtypes, seeds, st.sampled_from([0.001, 0.5, 2.0, 1000.0, -1.0]))
def test_scaling_all_weights_changes_nothing_when_they_are_normalized(shape, dtype, seed, factor):
    tensors = [random_tensor(shape, dtype, seed + i) for i in range(3)]
    weights = [0.2, 0.5, 0.4]
    base = random_tensor(shape, dtype, seed + 9)
    for method, basis in (("linear", None), ("task_arithmetic", base)):
        one, other = (
            one_tensor(method, tensors, [{"weight": w * f} for w in weights], base=basis,
                       normalize=True, out=torch.float64)
            for f in (1.0, factor)
        )  # fmt: skip
        scale = sum(abs(t.double()) for t in (*tensors, base))
        assert bool(((one - other).abs() <= 1e-14 * scale).all()), method


@given(shapes, dtypes, dtypes, seeds, st.booleans())
def test_slerp_at_its_ends_is_exactly_the_model(shape, dtype, other_dtype, seed, base_listed):
    base, other = random_tensor(shape, dtype, seed), random_tensor(shape, other_dtype, seed + 1)
    if base.numel() and torch.isfinite(other.to(dtype)).all():
        start, end = (one_tensor("slerp", [other], [{}], base=base, base_listed=base_listed, t=t)
                      for t in (0.0, 1.0))  # fmt: skip
        assert same_bits(start, base)
        assert same_bits(end, other.to(dtype))


@given(shapes, dtypes, seeds, st.sampled_from([{}, ROWS, COLUMNS]))
def test_nuslerp_with_all_weight_on_one_model_is_that_model(shape, dtype, seed, shared):
    one, two = (random_tensor(shape, dtype, seed + i) for i in range(2))
    for weights, wanted in (((1.0, 0.0), one), ((0.0, 3.0), two)):
        got = one_tensor("nuslerp", [one, two], [{"weight": w} for w in weights], **shared)
        assert torch.equal(got, wanted)


@given(shapes, dtypes, seeds)
def test_one_model_alone_keeps_its_bits(shape, dtype, seed):
    x = random_tensor(shape, dtype, seed)
    base = random_tensor(shape, dtype, seed + 1)
    assert same_bits(one_tensor("passthrough", [x], [{}]), x)
    assert same_bits(one_tensor("passthrough", [x], [{"scale": 1.0}]), x)
    assert same_bits(one_tensor("linear", [x], weighted(1, 3.0)), x)
    assert same_bits(one_tensor("task_arithmetic", [], [], base=base), base)
    assert same_bits(one_tensor("task_arithmetic", [x], weighted(1, 0.0), base=base), base)
    merged = one_tensor("linear", [x, base], [{"weight": 1.0}, {"weight": 0.0}])
    assert same_bits(merged, x)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@given(shapes, dtypes, seeds, st.lists(numbers, min_size=3, max_size=3))
def test_the_order_of_models_matters_only_to_rounding(method, shape, dtype, seed, weights):
    tensors = [random_tensor(shape, dtype, seed + i) for i in range(3)]
    base = random_tensor(shape, dtype, seed + 3) if method == "task_arithmetic" else None
    assume(abs(sum(weights)) > 0.1)
    orders = [(0, 1, 2), (2, 1, 0), (1, 2, 0)]
    results = [
        one_tensor(method, [tensors[i] for i in order], [{"weight": weights[i]} for i in order],
                   base=base, normalize=True, out=torch.float64)
        for order in orders
    ]  # fmt: skip
    scale = sum(abs(t.double()) * (sum(map(abs, weights)) + 1) for t in tensors)
    scale = scale + (abs(base.double()) * 60 if base is not None else 0)
    for result in results[1:]:
        assert bool(((result - results[0]).abs() <= 1e-14 * scale / abs(sum(weights))).all())


@given(shapes, seeds, numbers, st.sampled_from([1.0, -3.0, 1024.0]))
def test_a_constant_added_to_base_and_models_is_added_to_the_result(shape, seed, weight, shift):
    base, one, two = (random_tensor(shape, torch.float64, seed + i) for i in range(3))
    each = [{"weight": weight}, {"weight": 1 - weight}]
    plain = one_tensor("task_arithmetic", [one, two], each, base=base)
    moved = one_tensor("task_arithmetic", [one + shift, two + shift], each, base=base + shift)
    size = abs(base) + abs(one) + abs(two) + abs(shift)
    assert bool(((moved - shift - plain).abs() <= 1e-14 * size * (1 + 3 * abs(weight))).all())


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.1, 0.2, -0.3), (0.0, 0.0)], ids=str)
def test_weights_that_sum_to_zero_are_refused_before_any_work(weights):
    x = torch.ones(3)
    models = [{"model": f"m{i}", "parameters": {"weight": w}} for i, w in enumerate(weights)]
    given_models = {f"m{i}": {"w": x} for i in range(len(weights))}
    with pytest.raises(mergeloom.RecipeError, match="sum to zero"):
        mergeloom.merge_state_dicts({"merge_method": "linear", "models": models}, given_models)
    plain = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    got = mergeloom.merge_state_dicts(plain, given_models)["w"]
    assert bool((abs(got - sum(weights)) < 1e-7).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("factor", [-1.0, -0.5, -4.0])
def test_opposite_vectors_are_interpolated_in_a_straight_line(dtype, factor):
    x = random_tensor((300, 41), dtype, 7)
    y = x * factor
    for shared in ({}, ROWS, COLUMNS):
        got = one_tensor("nuslerp", [x, y], [{"weight": 0.75}, {"weight": 0.25}], **shared)
        assert close(got, (0.75 + 0.25 * factor) * x, 8), shared
    assert close(one_tensor("slerp", [y], [{}], base=x, t=0.25), (0.75 + 0.25 * factor) * x, 8)


@pytest.mark.parametrize("shared", [{}, ROWS, COLUMNS])
def test_opposite_vectors_in_float32_are_no_larger_in_bfloat16(shared):
    """Their cosine misses -1 by a rounding error, and what it is divided by is just as small."""
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(1))
    each = [{"weight": 0.75}, {"weight": 0.25}]
    got = one_tensor("nuslerp", [x, -0.3 * x], each, out=torch.bfloat16, **shared)
    assert close(got, (0.675 * x).bfloat16(), 2)

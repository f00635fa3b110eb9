"""Is every formula right? Against float64 on whole tensors, for all shapes and formats."""

from __future__ import annotations

from dataclasses import dataclass

import naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from inputs import dtypes, exact, numbers, one_tensor, random_tensor, seeds, shapes

outs = st.one_of(st.none(), dtypes)
scales = st.sampled_from([1.0, 1e-4, 30.0])


def is_wide(tensors: list[torch.Tensor], got: torch.Tensor) -> bool:
    return any(t.dtype == torch.float64 for t in (*tensors, got))


def fits(values: np.ndarray) -> bool:
    """Whether float16 can hold them all."""
    return not values.size or float(np.abs(values).max()) < 60000


@dataclass(frozen=True)
class Drawn:
    """Tensors of one shape, in one format or in mixed ones; prints as what makes them."""

    shape: tuple[int, ...]
    kinds: tuple[torch.dtype, ...]
    seed: int
    scale: float

    def tensors(self) -> list[torch.Tensor]:
        return [random_tensor(self.shape, kind, self.seed + i, self.scale)
                for i, kind in enumerate(self.kinds)]  # fmt: skip


def models(count: int):
    mixed = st.tuples(*[dtypes] * count)
    return st.builds(Drawn, shapes, st.one_of(dtypes.map(lambda d: (d,) * count), mixed),
                     seeds, scales)  # fmt: skip


many = st.integers(1, 5).flatmap(models)
base_and_others = st.integers(1, 5).flatmap(models)


@given(many, st.lists(numbers, min_size=5, max_size=5), st.booleans(), outs)
def test_linear(drawn, weights, normalize, out):
    tensors = drawn.tensors()
    weights = weights[: len(tensors)]
    total = sum(weights) if normalize else 1.0
    assume(abs(total) > 1e-3)
    expected = naive.linear([exact(t) for t in tensors], weights, normalize=normalize)
    assume(fits(expected))
    got = one_tensor("linear", tensors, [{"weight": w} for w in weights],
                     normalize=normalize, out=out)  # fmt: skip
    assert got.dtype == (out or tensors[0].dtype)
    summands = sum(abs(w / total) * np.abs(exact(t)) for w, t in zip(weights, tensors, strict=True))
    naive.assert_rounded_once(got, expected, summands, wide=is_wide(tensors, got), operations=8)


@given(base_and_others, st.lists(numbers, min_size=4, max_size=4),
       st.booleans(), numbers, outs, st.booleans())  # fmt: skip
def test_task_arithmetic(drawn, weights, normalize, scale, out, base_listed):
    tensors = drawn.tensors()
    base, *others = tensors
    weights = weights[: len(others)]
    divisor = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
    assume(abs(divisor) > 1e-3)
    expected = naive.task_arithmetic(
        exact(base), [exact(t) for t in others], weights, normalize=normalize, scale=scale
    )
    assume(fits(expected))
    got = one_tensor("task_arithmetic", others, [{"weight": w} for w in weights], base=base,
                     base_listed=base_listed or not others, out=out, normalize=normalize,
                     **{"lambda": scale})  # fmt: skip
    assert got.dtype == (out or base.dtype)
    summands = np.abs(exact(base)) + sum(
        abs(w * scale / divisor) * np.abs(exact(t) - exact(base))
        for w, t in zip(weights, others, strict=True)
    )
    naive.assert_rounded_once(got, expected, summands, wide=is_wide(tensors, got), operations=10)


@given(models(1), st.one_of(st.none(), numbers), outs)
def test_passthrough(drawn, scale, out):
    tensors = drawn.tensors()
    expected = naive.passthrough(exact(tensors[0]), scale)
    assume(fits(expected))
    given_scale = {} if scale is None else {"scale": scale}
    got = one_tensor("passthrough", tensors, [given_scale], out=out)
    naive.assert_rounded_once(
        got, expected, np.abs(expected), wide=is_wide(tensors, got), operations=2
    )


RELATIONS = ["independent", "same", "half", "twice", "opposite", "near", "far", "zero"]


def related(first: torch.Tensor, second: torch.Tensor, relation: str) -> torch.Tensor:
    """The second tensor, made to stand in a special relation to the first one."""
    made = {
        "independent": second,
        "same": first,
        "half": first * 0.5,
        "twice": first * 2,
        "opposite": -first,
        "near": first + second * 0.01,
        "far": second * 0.03 - first,
        "zero": second * 0,
    }[relation]
    return made.to(second.dtype)


def arc_error(first: np.ndarray, second: np.ndarray, t: float, axis: int | None, error: float):
    """How far the sum moves when the cosine is off by ``error``, and its summands' size.

    Both are large near 180 degrees: the coefficients are divided by the sine.
    """
    norms = np.sqrt((first**2).sum(axis, keepdims=True) * (second**2).sum(axis, keepdims=True))
    cosine = (first * second).sum(axis, keepdims=True) / np.maximum(norms, 1e-14)
    theta = np.arccos(np.clip(cosine, -1, 1))
    straight = (cosine > 1 - 1e-7) | (cosine < 1e-5 - 1)
    sine = np.where(straight, 1, np.sin(theta))
    slack, size = np.zeros_like(first), np.zeros_like(first)
    for u, vector in ((t, second), (1 - t, first)):
        slope = np.abs(u * np.cos(u * theta) - np.cos(theta) * np.sin(u * theta) / sine) / sine**2
        slack += error * np.where(straight, abs(u) + 1, slope) * np.abs(vector)
        size += np.where(straight, abs(u), np.abs(np.sin(u * theta) / sine)) * np.abs(vector)
    return slack, size


def cosine_error(tensors: list[torch.Tensor], got: torch.Tensor, deltas: bool) -> float:
    """Deltas are rounded to float32, and 16-bit outputs measure angles in float32."""
    if is_wide(tensors, got):
        return 2.0**-48
    return 2.0**-20 if got.dtype != torch.float32 else 2.0**-22 if deltas else 2.0**-48


steps = st.one_of(st.sampled_from([0.0, 1.0, 0.5, -1.0, 2.0, 1e-3]), st.floats(-1, 2))


@given(models(2), steps, st.sampled_from(RELATIONS), outs, st.booleans())
def test_slerp(drawn, t, relation, out, base_listed):
    base, second = drawn.tensors()
    other = related(base, second, relation)
    v0, v1 = exact(base), exact(other)
    norms = np.sqrt((v0**2).sum()), np.sqrt((v1**2).sum())
    # Not at the two steps of the formula, where a rounding error decides.
    cosine = abs((v0 * v1).sum() / max(norms[0] * norms[1], 1e-30))
    assume(abs(cosine - 0.9995) > 1e-5)
    assume(all(n == 0 or n > 1e-6 for n in norms))
    expected = naive.slerp(v0, v1, t)
    assume(fits(expected))
    got = one_tensor("slerp", [other], [{}], base=base, base_listed=base_listed, out=out, t=t)
    assert got.dtype == (out or base.dtype)
    loose = cosine_error([base, other], got, deltas=False)
    slack, size = arc_error(v0, v1, t, None, loose)
    size = size + abs(v0) * abs(1 - t) + abs(v1) * abs(t)
    assert_on_the_arc(got, expected, size, slack, is_wide([base, other], got))


def assert_on_the_arc(got, expected, summands, slack, wide):
    scale = 2.0**-52 if wide else 2.0**-23
    naive.assert_rounded_once(got, expected, summands + slack / scale, wide=wide, operations=6)


def hits_the_step(first, second, axis):
    """Whether vectors stand where rounding decides between the arc and the straight line."""
    norms = np.sqrt((first**2).sum(axis) * (second**2).sum(axis))
    beside = np.abs((first * second).sum(axis) + (1 - 1e-5) * norms) < 3e-6 * norms
    return bool(np.any(beside))


@given(models(3), numbers, numbers, st.sampled_from(RELATIONS), st.booleans(), outs,
       st.sampled_from(["flat", "last", "first"]))  # fmt: skip
def test_nuslerp(drawn, w1, w2, relation, with_base, out, vectors):
    assume(abs(w1 + w2) > 1e-2 or w1 == w2 == 0)
    base, first, second = drawn.tensors()
    if with_base:
        offset = related(first, second, relation).to(base.dtype) + base
        first, second = (first.to(base.dtype) + base), offset
        assume(bool(torch.isfinite(first).all() and torch.isfinite(second).all()))
    else:
        second = related(first, second, relation)
    used = [first, second, *([base] if with_base else [])]
    a, b = exact(first), exact(second)
    origin = exact(base) if with_base else np.zeros_like(a)
    flags = {"flatten": vectors == "flat", "row_wise": vectors == "first"}
    expected = naive.nuslerp(a, b, (w1, w2), base=origin if with_base else None, **flags)
    assume(fits(expected))
    got = one_tensor(
        "nuslerp", [first, second], [{"weight": w1}, {"weight": w2}],
        base=base if with_base else None, out=out,
        nuslerp_flatten=flags["flatten"], nuslerp_row_wise=flags["row_wise"],
    )  # fmt: skip
    assert got.dtype == (out or (base if with_base else first).dtype)
    t = 0.5 if w1 + w2 == 0 else w2 / (w1 + w2)
    axis = None if vectors == "flat" or a.ndim < 2 else 0 if vectors == "first" else -1
    da, db = a - origin, b - origin
    assume(not hits_the_step(da, db, axis))
    slack, size = arc_error(da, db, t, axis, cosine_error(used, got, with_base))
    size = size + abs(origin) + abs(da) * abs(1 - t) + abs(db) * abs(t)
    assert_on_the_arc(got, expected, size, slack, is_wide(used, got))


BLOCK = 1 << 18
LARGE = [(3, BLOCK + 5), (32 * BLOCK + 77,), (BLOCK + 1, 3), (7, 5, 30011)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tensors_of_many_blocks(shape, dtype):
    base, one, two = (random_tensor(shape, dtype, seed) for seed in range(3))
    b, x, y = exact(base), exact(one), exact(two)
    weights = [{"weight": 0.75}, {"weight": -0.5}]
    cases = [
        ("linear", {}, None, naive.linear([x, y], [0.75, -0.5])),
        ("task_arithmetic", {}, base, naive.task_arithmetic(b, [x, y], [0.75, -0.5])),
        ("nuslerp", {}, None, naive.nuslerp(x, y, (0.75, -0.5))),
    ]
    for method, shared, basis, expected in cases:
        got = one_tensor(method, [one, two], weights, base=basis, **shared)
        summands = abs(b) + 8 * (abs(x) + abs(y)) + abs(expected)
        naive.assert_rounded_once(got, expected, summands, wide=False, operations=6)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("shape", [(3, BLOCK + 5), (70, 60013), (BLOCK // 2, 9)], ids=str)
def test_an_angle_for_every_row_or_column_of_many_blocks(shape, row_wise):
    one, two = (random_tensor(shape, torch.float32, seed) for seed in range(2))
    axis = 0 if row_wise else 1
    x, y = exact(one), exact(two)
    norms = [np.maximum(np.sqrt((v**2).sum(axis, keepdims=True)), 1e-7) for v in (x, y)]
    cosine = np.clip((x * y).sum(axis, keepdims=True) / (norms[0] * norms[1]), -1, 1)
    theta = np.arccos(cosine)
    straight = (cosine.astype(np.float32) == 1) | (cosine < 1e-5 - 1)
    sine = np.where(straight, 1, np.sin(theta))
    summands = [np.where(straight, 0.7, np.sin(0.7 * theta) / sine) * x,
                np.where(straight, 0.3, np.sin(0.3 * theta) / sine) * y]  # fmt: skip
    got = one_tensor("nuslerp", [one, two], [{"weight": 0.7}, {"weight": 0.3}],
                     nuslerp_flatten=False, nuslerp_row_wise=row_wise)  # fmt: skip
    slack, _ = arc_error(x, y, 0.3, axis, 2.0**-46)
    assert_on_the_arc(got, sum(summands), sum(map(abs, summands)), slack, False)

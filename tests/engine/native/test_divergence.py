"""How much the softmaxes of rows differ: as numpy has it, the same bits on every processor."""

from __future__ import annotations

import numpy as np
import pytest

from mergeloom.engine.native.divergence import row_divergence

FLOOR = 1e-8


def found(x: np.ndarray, y: np.ndarray, kind: str = "F32", at_most: int = 99) -> np.ndarray:
    return row_divergence((x.ravel(), kind), (y.ravel(), kind), *x.shape, FLOOR, at_most)


def naive(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    def softmax(rows: np.ndarray) -> np.ndarray:
        wide = np.exp(rows.astype(np.longdouble) - rows.max(1, keepdims=True))
        return wide / wide.sum(1, keepdims=True) + FLOOR

    p, q = softmax(x), softmax(y)
    return np.maximum((p * np.log(p / q)).sum(1), 0)


def rows(row: int, scale: float, change: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(row)
    y = (random.standard_normal((20, row)) * scale).astype("f4")
    return y + (random.standard_normal((20, row)) * change).astype("f4"), y


@pytest.mark.parametrize("row", [1, 2, 7, 15, 16, 17, 64, 1001])
@pytest.mark.parametrize(
    ("scale", "change", "relative", "noise"),
    [(0.02, 5e-4, 2e-6, 1e-18), (0.02, 1e-6, 2e-6, 1e-18), (1, 0.1, 2e-6, 1e-15),
     (4, 0.05, 2e-6, 1e-15), (30, 0.05, 2e-6, 1e-15), (30, 5, 2e-7, 1e-15),
     (300, 300, 2e-7, 1e-15)],
)  # fmt: skip
def test_rows_differ_as_much_as_in_numpy(row, scale, change, relative, noise):
    """The noise is that of sums near 1, of float64's or, where rows are close, of numpy's."""
    x, y = rows(row, scale, change)
    got, wanted = found(x, y), naive(x, y)
    np.testing.assert_allclose(got, wanted.astype("f8"), rtol=relative, atol=noise)
    for level in (1, 3):
        assert np.array_equal(found(x, y, at_most=level), got)


@pytest.mark.parametrize("row", [1, 2, 50])
def test_a_number_added_to_a_row_makes_no_difference(row):
    y = np.random.default_rng(row).integers(-99, 99, (9, row)).astype("f4") / 64
    for change in (0.125, -1, 128):
        assert not found(y + np.float32(change), y).any()


@pytest.mark.parametrize("kind", ["BF16", "F16"])
@pytest.mark.parametrize("change", [0.05, 5])
def test_halves_are_read_as_they_are_stored(kind, change):
    x, y = rows(77, 1, change)
    if kind == "F16":
        halves = [a.astype("f2") for a in (x, y)]
        wide = [a.astype("f4") for a in halves]
    else:
        halves = [(a.view("u4") >> 16).astype("u2") for a in (x, y)]
        wide = [(a.astype("u4") << 16).view("f4") for a in halves]
    assert np.array_equal(found(*halves, kind), found(*wide))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_nan_and_infinity_are_not_lost(odd):
    x, y = np.ones((2, 3, 11), "f4")
    x[1, 4] = y[2, 10] = odd
    assert np.isnan(found(x, y)).tolist() == [False, True, True]

"""How much the softmaxes of rows differ: as numpy has it, the same bits on every processor."""

from __future__ import annotations

import numpy as np
import pytest

from mergeloom.engine.native.library import row_divergence

FLOOR = 1e-8


def naive(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    def softmax(rows: np.ndarray) -> np.ndarray:
        wide = np.exp(rows.astype(np.longdouble) - rows.max(1, keepdims=True))
        return wide / wide.sum(1, keepdims=True) + FLOOR

    p, q = softmax(x), softmax(y)
    return np.maximum((p * np.log(p / q)).sum(1), 0)


@pytest.mark.parametrize("row", [1, 2, 7, 8, 9, 64, 1001])
@pytest.mark.parametrize(("scale", "change"), [(0.02, 5e-4), (1, 0.1), (30, 5), (300, 300)])
def test_rows_differ_as_much_as_in_numpy(row, scale, change):
    random = np.random.default_rng(row)
    y = (random.standard_normal((20, row)) * scale).astype("f4")
    x = y + (random.standard_normal((20, row)) * change).astype("f4")
    found, wanted = row_divergence(x, y, FLOOR), naive(x, y)
    # Sums of about 1 that cancel: float64 leaves 1e-16 of each of its terms.
    np.testing.assert_allclose(found, wanted.astype("f8"), rtol=2e-7, atol=1e-15)
    for level in (1, 3):
        assert np.array_equal(row_divergence(x, y, FLOOR, level), found)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_nan_and_infinity_are_not_lost(odd):
    x, y = np.ones((2, 3, 11), "f4")
    x[1, 4] = y[2, 10] = odd
    assert np.isnan(row_divergence(x, y, FLOOR)).tolist() == [False, True, True]

"""Choices weighed by ranks: as the definition has it, the same with and without the library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.native.library import choose_by_rank
from mergeloom.engine.ranks import Chances, choose_by_sorting, chosen_by_rank

LEVELS = (1, 3, 4)
LIMITS = [(0.35, 0.65), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (1e-5, 2e-5), (0.9, 1.0)]


def sizes(kind: str, row: int, random: np.random.Generator) -> np.ndarray:
    """Three rows; what is not all normal numbers is so in another way."""
    normal = np.abs(random.standard_normal((3, row))).astype("f4")
    if kind == "few":  # as the changes between models in bfloat16 are
        normal = np.abs(np.rint(normal * 9) * 2.0 ** -random.integers(0, 6, normal.shape))
    if kind == "zeros":
        normal[random.random(normal.shape) < 0.5] = 0
    if kind == "near one another":
        normal = 1 + normal / 1000
    if kind == "nearly equal":
        normal = 1 + random.integers(0, 3, normal.shape) * 2.0**-23
    if kind in ("one far larger", "many far larger"):
        normal[:, random.integers(row, size=1 if kind == "one far larger" else row)] *= 1e9
    if kind == "equal":
        normal[:] = normal[0, 0]
    if kind == "tiny":
        normal = normal * 1e-39
    if kind == "not numbers":
        normal[random.random(normal.shape) < 0.1] = np.inf
        normal[random.random(normal.shape) < 0.1] = np.nan
    bits = normal.astype("f4").view("i4")
    if kind == "not numbers":
        bits[random.random(bits.shape) < 0.1] = 0x7FFFFFFF
    return bits


KINDS = ["normal", "few", "zeros", "near one another", "nearly equal", "one far larger",
         "many far larger", "equal", "tiny", "not numbers"]  # fmt: skip


def assert_as_defined(chosen, row, words, lowest, highest) -> None:
    """The definition, element by element; either is right within rounding of the probability."""
    smaller = (row[:, None] > row[None, :]).sum(1)
    not_larger = (row[:, None] >= row[None, :]).sum(1)
    rank = np.where(words % 2 == 1, smaller, not_larger - 1)
    share = rank / (len(row) - 1) if len(row) > 1 else 0.5
    probability = lowest + (highest - lowest) * share
    number = (words // 2 + 0.5) / 2**15
    sure = np.abs(number - probability) > 1e-12
    assert np.array_equal(chosen[sure], (number < probability)[sure])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS),
       row=st.one_of(st.integers(1, 40), st.integers(1, 3000)),
       limits=st.sampled_from(LIMITS))  # fmt: skip
def test_choices_are_as_defined(seed, kind, row, limits):
    random = np.random.default_rng(seed)
    bits = sizes(kind, row, random)
    words = random.integers(0, 2**16, bits.shape, dtype=np.uint16)
    words[random.random(bits.shape) < 0.1] = random.choice([0, 1, 2**16 - 2, 2**16 - 1])
    chosen = chosen_by_rank(bits.reshape(-1), bits.shape, words.reshape(-1), *limits)
    for found, *own in zip(chosen.reshape(bits.shape), bits, words, strict=True):
        assert_as_defined(found, *own, *limits)
    chances = Chances.between(*limits, row)
    for rows in (bits, bits.astype("i8")):
        assert np.array_equal(choose_by_sorting(rows, words, chances).reshape(-1), chosen)
    for level in LEVELS:
        fast = choose_by_rank(bits, words, *chances, level)
        assert fast is not None
        found, left = fast
        assert np.array_equal(found[~left], chosen.reshape(bits.shape)[~left])


@pytest.mark.parametrize(("kind", "wanted"), [("normal", 0), ("few", 0), ("equal", 0), ("tiny", 0),
                                              ("many far larger", 3)])  # fmt: skip
def test_rows_that_are_sorted_nevertheless(kind, wanted):
    """None of usual numbers; those where it would take longer than sorting them."""
    random = np.random.default_rng(0)
    bits = sizes(kind, 20000, random)
    words = random.integers(0, 2**16, bits.shape, dtype=np.uint16)
    fast = choose_by_rank(bits, words, *Chances.between(0.35, 0.65, 20000))
    assert fast is not None
    assert np.count_nonzero(fast[1]) == wanted

"""Random words and choices: the published generator, and the same in C as in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.native.library import random_words, run_program
from mergeloom.engine.native.programs import compiled
from mergeloom.engine.native.values import chosen, loaded
from mergeloom.engine.randomness import Chance, Stream, philox, plain_words
from mergeloom.engine.scratch import Scratch

KEYS = st.integers(0, 2**64 - 1)
COUNTS = st.sampled_from([0, 1, 7, 8, 511, 512, 513, 1500])
# Element 2^35 is the first whose call has a number of more than 32 bits.
FIRSTS = st.one_of(st.integers(0, 2000), st.integers(2**35 - 2000, 2**35), st.integers(0, 2**59))
ODD = np.array([1.5, -2.0, 0.0, -0.0, np.nan, np.inf, -np.inf], np.float32)


# The known answers that come with Random123, the authors' library: counter, key, result.
@pytest.mark.parametrize(
    "known",
    ["00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
     "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
     "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1"],
)  # fmt: skip
def test_the_generator_gives_the_known_answers(known):
    *counter, low, high, r0, r1, r2, r3 = (int(number, 16) for number in known.split())
    (made,) = philox(low | high << 32, np.array([counter], np.uint64).T).T
    assert made.tolist() == [r0 | r1 << 32, r2 | r3 << 32]


def naive_bits(key: int, element: int, last: int) -> list[int]:
    """128 bits of one call in eight words, by Python's integers."""
    x = [element & 0xFFFFFFFF, element >> 32, 0, last]
    low, high = key & 0xFFFFFFFF, key >> 32
    for r in range(10):
        p, q = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        k = (low + r * 0x9E3779B9) & 0xFFFFFFFF, (high + r * 0xBB67AE85) & 0xFFFFFFFF
        x = [q >> 32 ^ x[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ x[3] ^ k[1], p & 0xFFFFFFFF]
    return [number >> shift & 0xFFFF for number in x for shift in (0, 16)]


@settings(deadline=None)
@given(key=KEYS, first=FIRSTS, count=COUNTS)
def test_words_are_those_of_their_elements(key, first, count):
    """Whatever else is asked for; by numpy and every variant of the library."""
    words = plain_words(key, first, count)
    for i in {0, 1, count // 2, count - 1} & set(range(count)):
        assert words[i] == naive_bits(key, (first + i) // 8, 0)[(first + i) % 8]
    for level in (1, 3, 4):
        assert np.array_equal(random_words(key, first, count, level), words)


def by_tiles(values: np.ndarray, chance: Chance, first: int) -> np.ndarray:
    out = np.empty_like(values)
    compiled(stored=[chosen(loaded(0), chance)]).run(
        [(first, first + len(values))], [(values, "F32")], Scratch(), outputs=[(out, "F32")]
    )
    return out


PROBABILITIES = st.one_of(
    st.floats(0, 1, exclude_max=True), st.sampled_from([0.5, 0.25, 1e-9, 1 - 2.0**-53])
)


@settings(deadline=None)
@given(seed=st.integers(0, 99), first=FIRSTS, count=COUNTS, probability=PROBABILITIES)
def test_tiles_choose_what_numpy_chooses(seed, first, count, probability):
    """By a product: NaN and infinity are not hidden, and zeros have a sign."""
    assert run_program() is not None
    stream = Stream(seed, "tensor", "model")
    values = np.resize(ODD, count)
    drawn = stream.chosen(first, count, probability)
    with np.errstate(invalid="ignore"):
        wanted = values * drawn.astype(np.float32)
    got = by_tiles(values, stream.chance(probability), first)
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    some = ~np.isnan(wanted)
    assert np.array_equal(got[some].view("u4"), wanted[some].view("u4"))


@pytest.mark.parametrize("first", [0, 3, 2**35 - 9])
def test_a_word_at_the_edge_is_decided_by_32_more_bits(first):
    """The probability next below the element's bits does not choose it, the one above does."""
    stream = Stream(0, "tensor", "model")
    key = stream.chance(0.5).key
    for i, word in enumerate(stream.words(first, 20).tolist()):
        low, high = naive_bits(key, first + i, 1)[:2]
        bits = low | high << 16
        for more, wanted in ((0, False), (1, True)):
            probability = (word + (bits + more) / 2**32) / 2**16
            assert stream.chosen(first, 20, probability)[i] == wanted
            ones = by_tiles(np.ones(20, np.float32), stream.chance(probability), first)
            assert ones[i] == wanted


def test_a_certain_and_an_impossible_choice():
    stream = Stream(0, "tensor", "model")
    assert stream.chosen(0, 1 << 17, 1.0).all()
    assert not stream.chosen(0, 1 << 17, 0.0).any()
    assert len({Stream(*k).chance(0.5).key for k in
                [(0, "a", "b"), (1, "a", "b"), (0, "ab", ""), (0, "b", "a")]}) == 4  # fmt: skip

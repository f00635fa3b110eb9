"""Random choices that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np

from mergeloom.engine.native.library import random_words

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Words = np.ndarray[Any, np.dtype[np.uint16]]
Numbers = np.ndarray[Any, np.dtype[np.uint64]]

WORDS = 8
"""Random words that one call of the generator makes."""

_AT_ONCE = 1 << 13
"""Calls whose numbers fit into a core's caches."""


class Chance(NamedTuple):
    """What tiles choose with: see the struct of this name in tiles.c."""

    key: int
    whole: int
    rest: int


class Stream:
    """The random numbers of one model in one output tensor.

    An element's bits follow from (seed, tensor, model) and the element's number alone, so they
    are the same for any number of threads, order of work or models, size of blocks, and after a
    resume. The generator is that of random.c, which makes them where it was compiled.
    """

    def __init__(self, seed: int, tensor: str, model: str) -> None:
        text = "\0".join((str(seed), tensor, model)).encode()
        self.key = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    def chance(self, probability: float) -> Chance:
        """A choice with ``probability``, exact to 2⁻⁴⁸."""
        whole, part = divmod(probability * 2**16, 1)
        return Chance(self.key, int(whole), int(part * 2**32))

    def chosen(self, first: int, count: int, probability: float) -> Bools:
        """True with ``probability`` for elements [first, first + count)."""
        _, whole, rest = self.chance(probability)
        words = self.words(first, count)
        chosen: Bools = words < whole
        if rest:
            edge = np.flatnonzero(words == whole)
            chosen[edge] = _more_bits(self.key, first + edge) < rest
        return chosen

    def words(self, first: int, count: int) -> Words:
        """Numbers of 16 random bits for elements [first, first + count)."""
        words = random_words(self.key, first, count)
        return plain_words(self.key, first, count) if words is None else words


def plain_words(key: int, first: int, count: int) -> Words:
    """The same as the library's random words."""
    begin, end = first // WORDS, -(-(first + count) // WORDS)
    made = np.empty((end - begin, 2), dtype="<u8")
    for call in range(begin, end, _AT_ONCE):
        calls = np.arange(call, min(call + _AT_ONCE, end), dtype=np.uint64)
        made[call - begin : call - begin + len(calls)] = _made(key, calls, 0).T
    skipped = first - begin * WORDS
    words: Words = made.view("<u2").reshape(-1)[skipped : skipped + count]
    return words.astype(np.uint16, copy=False)


def _more_bits(key: int, elements: np.ndarray[Any, Any]) -> Numbers:
    """32 random bits of every element besides its word: from counters that end with 1, not 0."""
    bits: Numbers = _made(key, elements.astype(np.uint64), 1)[0] & _LOW
    return bits


def _made(key: int, numbers: Numbers, last: int) -> Numbers:
    """What the calls of these numbers make, shape (2, calls)."""
    counters = np.zeros((4, len(numbers)), dtype=np.uint64)
    counters[0], counters[1], counters[3] = numbers & _LOW, numbers >> _HALF, last
    return philox(key, counters)


_LOW, _HALF = np.uint64(2**32 - 1), np.uint64(32)


def philox(key: int, counters: Numbers) -> Numbers:
    """Philox4x32-10, see random.c: pairs of numbers of 32 bits, the first in the lower half.

    Args:
        key: 64 bits.
        counters: numbers of 32 bits, shape (4, calls).

    Returns: shape (2, calls).
    """
    factors = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
    steps = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
    keys = np.array([[key & 0xFFFFFFFF], [key >> 32]], dtype=np.uint64)
    even, odd = counters[0::2].copy(), counters[1::2].copy()
    products = np.empty_like(even)
    for _ in range(10):
        np.multiply(even, factors, out=products[::-1])
        np.right_shift(products, _HALF, out=even)
        even ^= odd
        even ^= keys
        np.bitwise_and(products, _LOW, out=odd)
        keys = (keys + steps) & _LOW
    return even | odd << _HALF

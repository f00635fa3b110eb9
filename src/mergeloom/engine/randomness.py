"""Random choices that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Words = np.ndarray[Any, np.dtype[np.uint16]]


class Stream:
    """The random numbers of one model in one output tensor.

    Every block has its own generator (SFC64) seeded from (seed, tensor, model, block), so the
    numbers are the same for any number of threads, order of work or models, and after a resume.
    Blocks are counted from an offset in steps of ``block`` elements; the offset itself names the
    first one, so a block of whole rows draws the same however long it is.
    """

    def __init__(self, seed: int, tensor: str, model: str) -> None:
        text = "\0".join((str(seed), tensor, model)).encode()
        self._entropy = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")

    def chosen(self, start: int, count: int, block: int, probability: float) -> Bools:
        """True with ``probability`` for elements [start, start + count), exactly to 2⁻⁵³.

        A random byte decides, except in the one case of 256 that lies at the probability: there
        another number does.
        """
        whole, part = divmod(probability * 256, 1)
        chosen = np.empty(count, dtype=np.bool_)
        for piece, generator in self._pieces(start, count, block):
            drawn = _words(generator, np.uint8, piece.stop - piece.start)
            np.less(drawn, whole, out=chosen[piece])
            if part:
                edge = np.flatnonzero(drawn == whole)
                chosen[piece][edge] = generator.random(len(edge)) < part
        return chosen

    def words(self, start: int, count: int, block: int) -> Words:
        """Numbers of 16 random bits for elements [start, start + count)."""
        words = np.empty(count, dtype=np.uint16)
        for piece, generator in self._pieces(start, count, block):
            words[piece] = _words(generator, np.uint16, piece.stop - piece.start)
        return words

    def _pieces(
        self, start: int, count: int, block: int
    ) -> Iterator[tuple[slice, np.random.Generator]]:
        for offset in range(0, count, block):
            key = np.random.SeedSequence(self._entropy, spawn_key=(start + offset,))
            generator = np.random.Generator(np.random.SFC64(key))
            yield slice(offset, min(offset + block, count)), generator


def _words(generator: np.random.Generator, dtype: type[np.unsignedinteger[Any]], count: int) -> Any:
    """Random integers of a dtype cut out of 64-bit ones, which numpy draws without its lock."""
    each = 8 // np.dtype(dtype).itemsize
    drawn = generator.integers(0, 2**64 - 1, -(-count // each), dtype=np.uint64, endpoint=True)
    return drawn.view(dtype)[:count]

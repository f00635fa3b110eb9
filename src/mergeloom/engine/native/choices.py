"""Chooses among the elements of rows by their ranks, while a program makes their sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergeloom.engine.native.programs import Piece, Program, Ranked, Source
from mergeloom.engine.randomness import Bools, Stream
from mergeloom.engine.ranks import Chances, choose_by_sorting, chosen_by_rank
from mergeloom.engine.scratch import Scratch


def chosen_sizes(
    sizes: Program,
    pieces: Sequence[Piece],
    inputs: Sequence[Source],
    scratch: Scratch,
    stream: Stream,
    shape: tuple[int, ...],
    limits: tuple[float, float],
) -> Bools:
    """See :func:`mergeloom.engine.ranks.chosen_by_rank`; of pieces one behind the other.

    Args:
        sizes: stores them, as its only output.
        pieces, inputs, scratch: as of a run of this program; pieces are whole rows.
        stream: the words of the elements.
        shape: of the tensor.
        limits: the lowest and the highest probability.
    """
    count = sum(stop - start for start, stop in pieces)
    row = max(1, shape[1] if len(shape) > 1 else math.prod(shape))
    if (pieces[0][1] - pieces[0][0]) % row:
        raise ValueError("whole_rows is wanted for choices by rank")
    if math.prod(shape[2:]) != 1:  # the elements of a row do not lie side by side
        found = _stored(sizes, pieces, inputs, scratch)
        return chosen_by_rank(found, shape, _words(stream, pieces), *limits)
    chances = Chances.between(*limits, row)
    chosen, left = np.empty(count, np.bool_), np.empty(count // row, np.bool_)
    sizes.run(pieces, inputs, scratch, outputs=[Ranked(stream.key, row, chances, chosen, left)])
    if left.any():
        rows = _stored(sizes, pieces, inputs, scratch).reshape(-1, row)[left]
        words = _words(stream, pieces).reshape(-1, row)[left]
        chosen.reshape(-1, row)[left] = choose_by_sorting(rows, words, chances)
    return chosen


def _stored(
    sizes: Program, pieces: Sequence[Piece], inputs: Sequence[Source], scratch: Scratch
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The sizes as the integers of their bits."""
    found = scratch.array("sizes", sum(stop - start for start, stop in pieces), np.float32)
    sizes.run(pieces, inputs, scratch, outputs=[(found, "F32")])
    return found.view(np.int32)


def _words(stream: Stream, pieces: Sequence[Piece]) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.concatenate([stream.words(start, stop - start) for start, stop in pieces])

"""Sizes that choose while they are made: as those that are made first and chosen from then."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergeloom.checkpoint.open_files import open_file
from mergeloom.engine.native.choices import chosen_sizes
from mergeloom.engine.native.programs import Stored, compiled
from mergeloom.engine.native.shared_object import CHUNK
from mergeloom.engine.native.values import loaded
from mergeloom.engine.randomness import Stream
from mergeloom.engine.ranks import chosen_by_rank
from mergeloom.engine.scratch import Scratch

LIMITS = (0.35, 0.65)
SIZES = compiled(stored=[(loaded(1) - loaded(0)).abs()])


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(
    "shape", [(7,), (1, 1), (300, 513), (5, CHUNK + 3), (40, 6, 3), (70000, 2)]
)
def test_as_if_sizes_were_there_first(shape, uneven, tmp_path):
    """Rows that end inside chunks or are longer, and rows that must be sorted."""
    random = np.random.default_rng(len(shape))
    base, model = (random.standard_normal(math.prod(shape)).astype("f4") for _ in range(2))
    if uneven:
        base[:] = 0
        model *= np.float32(1e9) ** random.random(model.size).round().astype("f4")
    row = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    rows = model.size // row
    stream = Stream(3, "tensor", "model")
    path = tmp_path / "weights"
    path.write_bytes(base.tobytes() + model.tobytes())
    file = open_file(path)
    stored = [Stored(file, 0, "F32"), Stored(file, base.nbytes, "F32")]
    piece = max(1, rows // 3) * row
    for pieces in [[(0, model.size)], [(0, piece), (model.size - piece, model.size)]]:
        held = [(np.concatenate([of[a:b] for a, b in pieces]), "F32") for of in (base, model)]
        for inputs in (held, stored):
            found = chosen_sizes(SIZES, pieces, inputs, Scratch(), stream, shape, LIMITS)
            for (start, stop), chosen in zip(pieces, np.split(found, len(pieces)), strict=True):
                bits = np.abs(model - base)[start:stop].view("i4")
                words = stream.words(start, stop - start)
                assert np.array_equal(chosen, chosen_by_rank(bits, shape, words, *LIMITS))


def test_blocks_that_cut_rows_are_refused():
    inputs = [(np.zeros(15, np.float32), "F32")] * 2
    with pytest.raises(ValueError, match="whole_rows is wanted"):
        chosen_sizes(SIZES, [(0, 15)], inputs, Scratch(), Stream(3, "", ""), (2, 10), LIMITS)

"""What a recorded formula wants besides its inputs is that of the elements it is asked for."""

from __future__ import annotations

import numpy as np

from mergeloom.checkpoint.views import StoredTensor
from mergeloom.engine.facts import Facts
from mergeloom.engine.native.blocks import Inputs
from mergeloom.engine.native.evaluation import Range, RecordedBlock
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.planning import Job
from mergeloom.planning.plan import JobInput

SHAPE = (6, 40)


def test_a_sample_is_not_taken_for_the_block_it_begins_with(tmp_path):
    """Rows from all over a range may be as many as those of its first block."""
    random = np.random.default_rng(0)
    tensors = random.standard_normal((2, *SHAPE), np.float32)
    (tmp_path / "file").write_bytes(tensors.tobytes())
    views = [StoredTensor(tmp_path / "file", i * tensors[0].nbytes, "F32", SHAPE) for i in (0, 1)]
    inputs = tuple(JobInput(f"m{i}", "x", view, {}) for i, view in enumerate(views))
    job = Job("x", "F32", SHAPE, "arcee_fusion", inputs, has_base=True)

    def made(*ranges: list[tuple[int, int]]) -> np.ndarray:
        """The last of several ranges' divergences, one after the other."""
        block = RecordedBlock(job, Facts(job, job.formula(), 0))
        block.row_divergence(0, 1e-8)
        ((_, make),) = block.extras
        own = Inputs(job, Spare(0, 0))
        return [make(Range(pieces, own, Scratch())) for pieces in ranges][-1]

    block, sample = [(0, 80)], [(0, 40), (200, 240)]
    assert not np.array_equal(made(block), made(sample))
    assert np.array_equal(made(sample, block), made(block))
    assert np.array_equal(made(block, sample), made(sample))

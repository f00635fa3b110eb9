"""What the engine runs for one job, whatever the kind of its formula."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from mergeloom.engine.elementwise import ElementwiseKernel
from mergeloom.engine.scratch import Scratch
from mergeloom.engine.weighted_sum import SumKernel
from mergeloom.methods import Formula, Note, WeightedSum
from mergeloom.planning import Job


class Kernel(Protocol):
    """A job's measuring passes and its writing pass. Ranges are whole blocks of whole rows.

    ``span`` is the number of the range; ranges are the same in every pass. What is absorbed is
    put in order by span, so the result does not depend on which worker was first.
    """

    phases: int
    """Measuring passes before the writing one."""

    block_row: int
    """Elements that a block must not cut through."""

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Any:
        """What pass ``phase`` learns from elements [start, stop), in blocks of ``step``."""
        ...

    def absorb(self, phase: int, span: int, part: Any) -> None:
        """Take what one range gave. Called by one thread at a time."""
        ...

    def reads_all(self, phase: int) -> bool:
        """Whether a pass reads every element, not a sample."""
        ...

    def settle(self, phase: int, note: Note) -> int:
        """End a pass, every range of which was absorbed; the number of the next pass."""
        ...

    def begin(self, span: int) -> Any:
        """What ``compute`` carries from block to block of one range."""
        ...

    def compute(self, start: int, stop: int, scratch: Scratch, carried: Any) -> torch.Tensor:
        """Output elements [start, stop), 1-D; overwritten by the next call."""
        ...


def make_kernel(job: Job, formula: Formula, device: torch.device, seed: int) -> Kernel:
    """The kernel for a formula."""
    if isinstance(formula, WeightedSum):
        return SumKernel(job, formula, device)
    return ElementwiseKernel(job, formula, device, seed)

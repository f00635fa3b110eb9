"""Chooses the kernel that runs a job."""

from __future__ import annotations

from mergeloom.engine.copying import CopyKernel
from mergeloom.engine.device import resolve_device
from mergeloom.engine.elementwise import ElementwiseKernel
from mergeloom.engine.facts import Facts
from mergeloom.engine.kernel import Kernel
from mergeloom.engine.native.blocks import can_run, knows
from mergeloom.engine.native.evaluation import TiledEvaluation, recordable
from mergeloom.engine.native.shared_object import why_missing
from mergeloom.engine.native.sums import TiledSum
from mergeloom.engine.scratch import Spare
from mergeloom.errors import Problem
from mergeloom.methods import UNCHANGED, Formula, WeightedSum
from mergeloom.planning import Job, Plan


def make_kernel(job: Job, formula: Formula | None, device: str, seed: int, spare: Spare) -> Kernel:
    """The kernel for a formula, or for a copy: in tiles wherever they can, else in torch.

    torch is imported where it is needed and nowhere else. ``spare`` is memory for inputs that
    stay from one pass to the next.
    """
    in_tiles = device == "cpu" and can_run(job)
    if formula is None or formula == UNCHANGED:
        if in_tiles and job.inputs[0].view.dtype != job.dtype:
            return TiledSum(job, UNCHANGED, spare)
        return CopyKernel(job)
    if isinstance(formula, WeightedSum):
        if in_tiles and (formula.vectors == "tensor" or len(job.shape) < 2):
            return TiledSum(job, formula, spare)
        from mergeloom.engine.in_torch.sums import TorchSum

        return TorchSum(job, formula, device)
    facts = Facts(job, formula, seed)
    if in_tiles and recordable(job, formula):
        evaluation = TiledEvaluation(job, formula, facts, spare)
        return ElementwiseKernel(job, formula, facts, evaluation)
    from mergeloom.engine.in_torch.evaluation import TorchEvaluation

    return ElementwiseKernel(job, formula, facts, TorchEvaluation(job, formula, facts, device))


def arithmetic(device: str) -> str:
    """What decides the last bits of a result besides its plan: the kind of device, and on the
    CPU whether the compiled library computes.
    """
    kind = resolve_device(device).partition(":")[0]
    return "tiles" if kind == "cpu" and why_missing() is None else kind


def missed_library(plan: Plan, device: str) -> Problem | None:
    """What to tell the user when the library is missing and would have had something to do."""
    why = why_missing()
    jobs = [job for part in (*plan.chain, plan) for job in part.jobs]
    if why is None or resolve_device(device) != "cpu":
        return None
    if not any(job.formula() not in (None, UNCHANGED) and knows(job) for job in jobs):
        return None
    return Problem(
        "--device cpu",
        f"mergeloom's compiled library cannot be used ({why}), so torch computes, which takes "
        "several times as long",
        "Install mergeloom from a wheel, or from source where pip can fetch ziglang or finds a "
        "C compiler; in a clone: make native.",
    )

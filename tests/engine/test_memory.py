"""--max-memory is a promise: what a run is said to take, and what it takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import save

import mergeloom
from mergeloom.checkpoint.views import StoredTensor, permuted
from mergeloom.engine import memory
from mergeloom.engine.copying import CopyKernel
from mergeloom.engine.elementwise import ElementwiseKernel
from mergeloom.engine.kernels import make_kernel
from mergeloom.engine.memory import memory_of
from mergeloom.engine.native.evaluation import TiledEvaluation
from mergeloom.engine.native.sums import TiledSum
from mergeloom.engine.scratch import Spare
from mergeloom.methods import METHODS, Elementwise, WeightedSum
from mergeloom.methods.registry import method
from mergeloom.planning import Job
from mergeloom.planning.plan import JobInput

NUMBERS = {"density": 0.5, "gamma": 0.1, "select_topk": 0.5, "epsilon": 0.1, "t": 0.3,
           "nuslerp_flatten": True, "rescale": "true"}  # fmt: skip
RECIPE = """\
merge_method: {0}
base_model: {1}/base
models: [{1}/a, {1}/b, {1}/c]
parameters: {{density: 0.5, weight: 0.4}}
dtype: bfloat16
"""
RUN = """
import sys, mergeloom
recipe, out, threads, memory = sys.argv[1:]
mergeloom.merge(recipe, out, threads=int(threads), max_memory=int(memory))
assert "torch" not in sys.modules
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four models with a tensor of two spans; their changes are no usual ones."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b", "c")):
        random = torch.Generator().manual_seed(seed)
        tensors = {"x": torch.randn(4096, 1024, generator=random), "y": torch.ones(77)}
        tensors = {n: t.to(torch.bfloat16) for n, t in tensors.items()}
        save(folder / name, tensors, {"model_type": "x"})
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says it there")
@pytest.mark.parametrize("name", ["breadcrumbs_ties", "della"])
def test_a_process_takes_no_more_than_it_may(name, folder, tmp_path):
    (tmp_path / "recipe.yml").write_text(RECIPE.format(name, folder))
    allowed = memory_of(mergeloom.plan(tmp_path / "recipe.yml")).least(2)
    assert allowed < memory.PROCESS_WITH_TORCH
    arguments = [str(tmp_path / "recipe.yml"), str(tmp_path / "out"), "2", str(allowed)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < allowed


def job(name: str, file: Path) -> Job:
    """One tensor of a method, whose parameters make it do all it can."""
    declared = METHODS[name]
    own = {p.name: NUMBERS.get(p.name, p.default) for p in declared.parameters}
    own = {k: 0.5 if v is None else v for k, v in own.items()}
    base = declared.base != "unused" and name != "karcher"
    count = 1 if name == "slerp" else min(declared.models[1] or 3, 3)
    view = StoredTensor(file, 0, "BF16", (8, 16))
    inputs = tuple(JobInput(f"m{i}", "x", view, own) for i in range(count + base))
    return Job("x", "BF16", (8, 16), name, inputs, has_base=base, parameters=own)


def in_torch(one: Job) -> bool:
    """Whether the kernel that a job gets is torch's."""
    kernel = make_kernel(one, one.formula(), "cpu", 0, Spare(0, 0))
    if isinstance(kernel, ElementwiseKernel):
        return not isinstance(kernel._evaluation, TiledEvaluation)
    return not isinstance(kernel, TiledSum | CopyKernel)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    return path


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_bound_is_that_of_the_kernel_that_runs(name, file):
    one = job(name, file)
    assert not in_torch(one)
    assert not memory._in_torch(one)
    double = replace(one, dtype="F64")
    assert in_torch(double) is memory._in_torch(double) or one.method == "passthrough"
    turned = replace(one.inputs[0], view=permuted(one.inputs[0].view, (1, 0)))
    assert memory._in_torch(replace(one, inputs=(turned, *one.inputs[1:])))


def test_what_other_packages_compute_counts_as_for_torch(file):
    one = job("linear", file)
    declared = method(name="of_another", title="", summary="", use="", models=(1, None))(
        lambda _: Elementwise(lambda block: block.base.sqrt())
    )
    try:
        other = replace(one, method="of_another")
        assert in_torch(other)
        assert memory._in_torch(other)
        assert not memory._in_torch(replace(one, method="linear"))
    finally:
        del METHODS._known[declared.name]


def test_rows_of_their_own_sums_are_for_torch(file):
    one = job("nuslerp", file)
    rows = replace(one, parameters={**one.parameters, "nuslerp_flatten": False})
    assert isinstance(rows.formula(), WeightedSum)
    assert in_torch(rows)
    assert memory._in_torch(rows)


def test_memory_that_is_lent_is_never_more_than_there_is():
    spare = Spare(100, 10_000)
    first = spare.take(6000)
    assert first is not None
    assert spare.take(6000) is None
    small = spare.take(2000)
    assert small is not None
    spare.give_back(small)
    spare.give_back(first)
    large = spare.take(9000)  # nothing of what was given back is large enough
    assert large is not None
    assert spare.take(2000) is None

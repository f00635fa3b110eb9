"""The same recipe gives the same bytes, however it is run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import assert_same_files, content, save

import mergeloom
from mergeloom import Options
from mergeloom.engine.memory import memory_of
from mergeloom.engine.run import Settings, run
from mergeloom.engine.sink import Tensors

BLOCK = 1 << 18
SHAPES = {
    "embed.weight": (300, 64),
    "layers.0.a.weight": (33, BLOCK),  # more than one span
    "layers.0.b.weight": (700, 611),
    "layers.1.a.weight": (5, BLOCK + 3),
    "layers.1.b.weight": (700, 611),
    "layers.1.norm.weight": (64,),
    "norm.weight": (),
    "head.weight": (0, 64),
}
CONFIG = {"model_type": "x", "num_hidden_layers": 2, "vocab_size": 300}
MERGES = {
    "linear": {},
    "task_arithmetic": {"lambda": 0.7},
    "slerp": {"t": [0.2, 0.8]},
    "nuslerp": {},
    "nuslerp_rows": {"nuslerp_flatten": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models: one file and two shards, float32 and bfloat16."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, (name, dtype, shards) in enumerate(
        [("base", torch.bfloat16, 1), ("one", torch.float32, 1), ("two", torch.bfloat16, 2)]
    ):
        chance = torch.Generator().manual_seed(seed)
        tensors = {n: torch.randn(s, generator=chance).to(dtype) for n, s in SHAPES.items()}
        save(folder / name, tensors, CONFIG, shards=shards, files={"notes.txt": name})
    return folder


def recipe(folder: Path, merge: str) -> str:
    method = merge.partition("_rows")[0]
    models = "".join(f"- {{model: {folder / name}, parameters: {{weight: {weight}}}}}\n"
                     for name, weight in (("one", 0.6), ("two", 0.7)))  # fmt: skip
    if method == "slerp":
        models = f"- model: {folder / 'one'}\n"
    base = "" if method == "linear" else f"base_model: {folder / 'base'}\n"
    parameters = "".join(f"  {k}: {str(v).lower()}\n" for k, v in MERGES[merge].items())
    parameters = f"parameters:\n{parameters}" if parameters else ""
    return f"merge_method: {method}\n{base}models:\n{models}{parameters}"


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    """Each merge once, with one thread."""
    where = tmp_path_factory.mktemp("reference")
    found = {}
    for merge in MERGES:
        mergeloom.merge(recipe(folder, merge), where / merge / "out", threads=1)
        found[merge] = content(where / merge / "out")
    return found


@pytest.mark.parametrize("merge", MERGES)
def test_threads_and_memory(merge, folder, reference, tmp_path):
    text = recipe(folder, merge)
    least = memory_of(mergeloom.plan(text)).least(2)  # no input stays for another pass
    for threads, memory in ((2, None), (5, 8 << 30), (4, least)):
        out = tmp_path / f"{threads}" / "out"
        mergeloom.merge(text, out, threads=threads, max_memory=memory)
        assert_same_files(out, reference[merge])


@pytest.mark.parametrize("merge", MERGES)
def test_the_order_of_the_jobs(merge, folder, reference, tmp_path):
    plan = mergeloom.plan(recipe(folder, merge))
    results = []
    for order in (list(plan.jobs), list(reversed(plan.jobs)),
                  random.Random(5).sample(plan.jobs, len(plan.jobs))):  # fmt: skip
        shuffled = replace(plan, jobs=tuple(order))
        sink = Tensors(shuffled)
        run(shuffled, sink, Settings(threads=3))
        results.append(sink.by_name)
    for other in results[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


def test_hash_seeds_and_a_process_of_its_own(folder, reference, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(recipe(folder, "slerp"))
    for seed in ("0", "4242"):
        out = tmp_path / seed / "out"
        code = "from mergeloom.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, "merge", str(path), str(out), "-q"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert_same_files(out, reference["slerp"])


@pytest.mark.parametrize("limit", [1, 1_000_000, 9_000_000])
def test_shards_hold_the_same_tensors(limit, folder, reference, tmp_path):
    from safetensors.torch import load, load_file

    mergeloom.merge(recipe(folder, "nuslerp"), tmp_path / "out",
                    options=Options(out_shard_size=limit))  # fmt: skip
    whole = load(reference["nuslerp"]["model.safetensors"])
    parts = [load_file(p) for p in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(parts) > 1
    together = {name: tensor for part in parts for name, tensor in part.items()}
    assert sum(map(len, parts)) == len(together) == len(whole)
    assert all(torch.equal(together[name], tensor) for name, tensor in whole.items())


def test_a_merge_in_memory_gives_the_bytes_of_the_merge_on_disk(folder, reference):
    from safetensors.torch import load, load_file

    inputs = {str(folder / "base"): load_file(folder / "base" / "model.safetensors"),
              str(folder / "one"): load_file(folder / "one" / "model.safetensors")}  # fmt: skip
    configs = dict.fromkeys(inputs, CONFIG)
    merged = mergeloom.merge_state_dicts(recipe(folder, "slerp"), inputs, configs=configs)
    stored = load(reference["slerp"]["model.safetensors"])
    assert list(merged) == [job.name for job in mergeloom.plan(recipe(folder, "slerp")).jobs]
    assert all(torch.equal(merged[name], tensor) for name, tensor in stored.items())

"""Training in miniature: the same bytes twice, and only the projections move."""

from __future__ import annotations

import torch

from mergeloom.demo import train
from mergeloom.demo.llama import load, read_safetensors, write_safetensors


def test_two_runs_write_the_same_bytes(tmp_path):
    written = []
    for run in ("first", "second"):
        base = train.train_base(steps=3, batch=8)
        specialist = train.train_specialist(base, "sort", steps=3, batch=8)
        train.save(tmp_path / run, specialist)
        files = sorted((tmp_path / run).iterdir())
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]


def test_a_specialist_changes_the_projections_only():
    base = train.train_base(steps=1, batch=4)
    specialist = train.train_specialist(base, "add", steps=2, batch=4)
    assert list(specialist) == list(base)
    changed = {name for name in base if not torch.equal(base[name], specialist[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_the_base_learns():
    losses = []
    for steps in (1, 20):
        weights = {n: w.float() for n, w in train.train_base(steps=steps, batch=8).items()}
        rng = train.random.Random(9)
        batch = train._draw_batch(rng, train.BASE_TASKS, 64)
        losses.append(train._loss(train.CONFIG, weights, batch).item())
    assert losses[1] < losses[0] - 0.5


def test_files_round_trip_and_safetensors_reads_them(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "b": torch.randn(7),
        "c": torch.randn(2, 2).half(),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    for read in (read_safetensors, load_file):
        found = read(tmp_path / "model.safetensors")
        assert set(found) == set(tensors)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_saved_model_loads_with_its_config(tmp_path):
    base = train.train_base(steps=1, batch=4)
    train.save(tmp_path / "base", base)
    model = load(tmp_path / "base")
    assert model.config == train.CONFIG
    assert all(torch.equal(model.weights[name], base[name].float()) for name in base)

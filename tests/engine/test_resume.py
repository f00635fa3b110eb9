"""A killed merge goes on where it stopped, and gives what an undisturbed one gives."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
import victim
from models import assert_same_files, save
from stopping import Stop, stop_after

import mergeloom
from mergeloom import OutputError
from mergeloom.engine import journal, sink

TENSORS = 24
ROWS, COLUMNS = 100, 5003


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two models of 24 tensors of half a million numbers each: 48 and 24 MB."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, (name, dtype) in enumerate([("one", torch.float32), ("two", torch.bfloat16)]):
        chance = torch.Generator().manual_seed(seed)
        whole = torch.randn(TENSORS, ROWS, COLUMNS, generator=chance).to(dtype)
        tensors = {f"t{i:02}": whole[i] for i in range(TENSORS)}
        save(folder / name, tensors, {"model_type": "x"}, files={"notes/a.txt": "A"})
    return folder


def recipe(inputs: Path, method: str = "nuslerp", weight: float = 0.3) -> str:
    return (
        f"merge_method: {method}\nmodels:\n"
        f"- {{model: {inputs / 'one'}, parameters: {{weight: {weight}}}}}\n"
        f"- {{model: {inputs / 'two'}, parameters: {{weight: 1.0}}}}\n"
    )


def wait_for_a_tensor(journal: Path, alive: Callable[[], bool]) -> None:
    """Until one more tensor is finished than when this began."""
    before = journal.read_bytes().count(b'"job"') if journal.exists() else 0
    while alive() and not (journal.exists() and journal.read_bytes().count(b'"job"') > before):
        time.sleep(0.002)


def interrupted(text: str, out: Path, spans: int, **options) -> None:
    with pytest.raises(Stop):
        mergeloom.merge(text, out, progress=stop_after(spans), threads=1, **options)
    assert not out.exists()


@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(shards, seed, inputs, tmp_path):
    options = mergeloom.Options(out_shard_size=5_000_000_000 if shards == 1 else 20_000_000)
    text, out = recipe(inputs), tmp_path / "killed" / "out"
    mergeloom.merge(text, tmp_path / "whole" / "out", options=options)
    chance = random.Random(seed)
    journal = out.parent / ".out.partial" / ".journal.jsonl"
    for _ in range(3):
        process = victim.start(text, str(out), 0.05, options=options, threads=2)
        wait_for_a_tensor(journal, process.is_alive)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists()
    done = mergeloom.merge(text, out, options=options)
    assert 0 < done.resumed < TENSORS
    assert_same_files(out, tmp_path / "whole" / "out")
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


@pytest.mark.parametrize("method", ["linear", "nuslerp"])
def test_stopped_after_every_number_of_pieces(method, inputs, tmp_path):
    """Each run does a few pieces more; the report counts what earlier ones did."""
    text, out = recipe(inputs, method), tmp_path / "out"
    mergeloom.merge(text, tmp_path / "whole" / "out")
    for spans in (0, 1, 5, 16):
        interrupted(text, out, spans)
    seen = []
    done = mergeloom.merge(text, out, progress=lambda read, written: seen.append(written))
    assert 0 < done.resumed < TENSORS
    assert sum(seen) == done.plan.bytes_out
    assert_same_files(out, tmp_path / "whole" / "out")


def test_a_journal_cut_anywhere_is_still_read(inputs, tmp_path):
    text, out = recipe(inputs, "linear"), tmp_path / "out"
    mergeloom.merge(text, tmp_path / "whole" / "out")
    journal = tmp_path / ".out.partial" / ".journal.jsonl"
    for cut in (1, 3, 9):
        interrupted(text, out, TENSORS - 3)
        raw = journal.read_bytes()
        journal.write_bytes(raw[:-cut])
    done = mergeloom.merge(text, out)
    assert 0 < done.resumed < TENSORS
    assert_same_files(out, tmp_path / "whole" / "out")


class Disk:
    """Keeps of the weights of a partial output what was flushed, as a disk does."""

    def __init__(self, weights: Path) -> None:
        self.weights, self.held, self.broken = weights, b"", False

    def fsync(self, fd: int) -> None:
        if not os.path.samestat(os.fstat(fd), self.weights.stat()):
            return
        if self.broken:
            self.lose()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.held = self.weights.read_bytes()

    def lose(self) -> None:
        self.weights.write_bytes(self.held)


@pytest.mark.parametrize(
    "loss", ["the machine goes down", "the disk cannot write", "nor can it note that"]
)
def test_what_never_reached_the_disk_is_made_again(loss, inputs, tmp_path, monkeypatch):
    """The journal reaches it whole: in what order files do is the system's choice."""
    text, out = recipe(inputs), tmp_path / "out"
    mergeloom.merge(text, tmp_path / "whole" / "out")
    partial = tmp_path / ".out.partial"
    disk, spans, write = Disk(partial / "model.safetensors"), count(1), os.write

    def forgetful(fd: int, data: bytes) -> int:
        if b"null" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    def progress(read: int, written: int) -> None:
        span = next(spans)
        if span == 8:  # of 48, two of each tensor
            while b"flushed" not in (partial / ".journal.jsonl").read_bytes():
                time.sleep(0.002)
            run.setattr(sink, "SECONDS_BETWEEN_FLUSHES", 3600)
        if span == 16:
            disk.broken = True
            if loss == "the machine goes down":
                raise Stop

    with monkeypatch.context() as run:
        run.setattr(os, "fsync", disk.fsync)
        if loss == "nor can it note that":
            run.setattr(os, "write", forgetful)
        run.setattr(sink, "_blocks_read", count().__next__)  # the disk always reads
        run.setattr(sink, "SECONDS_WITHOUT_FLUSH", 0)
        run.setattr(sink, "SECONDS_BETWEEN_FLUSHES", 0)
        with pytest.raises((Stop, OutputError)):
            mergeloom.merge(text, out, progress=progress, threads=1)
    if loss == "the machine goes down":
        disk.lose()
        monkeypatch.setattr(journal, "_system", lambda: "another one")
    resumed = mergeloom.merge(text, out).resumed
    assert resumed == 0 if loss == "nor can it note that" else 0 < resumed < 8
    assert_same_files(out, tmp_path / "whole" / "out")


def test_a_disk_without_room_for_the_journal_is_told(inputs, tmp_path, monkeypatch):
    def full(fd: int, data: bytes) -> int:
        if b'"job": 5' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    write = os.write
    with monkeypatch.context() as then:
        then.setattr(os, "write", full)
        with pytest.raises(OutputError, match="No space left on device"):
            mergeloom.merge(recipe(inputs), tmp_path / "out", threads=1)
    assert mergeloom.merge(recipe(inputs), tmp_path / "out").resumed == 5


def test_a_worker_that_cannot_be_started_stops_the_others(inputs, tmp_path, monkeypatch):
    """Else they would write into files that are closed, or by then somebody else's."""
    start = threading.Thread.start

    def no_second(thread: threading.Thread) -> None:
        if thread.name == "mergeloom-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_second)
    with pytest.raises(RuntimeError, match="can't start"):
        mergeloom.merge(recipe(inputs), tmp_path / "out", threads=2)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("mergeloom-")]


def test_what_was_allowed_before_the_interrupt_is_not_allowed_after_it(inputs, tmp_path):
    text = recipe(inputs, "linear", weight=3e38) + "parameters: {normalize: false}\n"
    out = tmp_path / "out"
    interrupted(text, out, 9, allow_nonfinite=True)
    with pytest.raises(mergeloom.MergeError, match="NaN or infinite"):
        mergeloom.merge(text, out)
    done = mergeloom.merge(text, out, allow_nonfinite=True)
    assert done.resumed
    assert len(done.nonfinite) == TENSORS


def test_another_recipe_starts_over(inputs, tmp_path):
    out = tmp_path / "out"
    interrupted(recipe(inputs), out, 9)
    (tmp_path / ".out.partial" / "stale.safetensors").write_text("from the other recipe")
    done = mergeloom.merge(recipe(inputs, weight=0.31), out)
    assert done.resumed == 0
    mergeloom.merge(recipe(inputs, weight=0.31), tmp_path / "whole" / "out")
    assert_same_files(out, tmp_path / "whole" / "out")


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_input_starts_over(change, inputs, tmp_path):
    out, weights = tmp_path / "out", inputs / "one" / "model.safetensors"
    interrupted(recipe(inputs), out, 9)
    status = weights.stat()
    try:
        if change == "time":
            os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        else:
            (inputs / "one" / "notes" / "a.txt").write_text("longer")
        assert mergeloom.merge(recipe(inputs), out).resumed == 0
    finally:
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        (inputs / "one" / "notes" / "a.txt").write_text("A")


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_partial_output_without_its_weights_starts_over(damage, inputs, tmp_path):
    text, out = recipe(inputs), tmp_path / "out"
    mergeloom.merge(text, tmp_path / "whole" / "out")
    interrupted(text, out, 9)
    weights = tmp_path / ".out.partial" / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        os.truncate(weights, 100)
    mergeloom.merge(text, out)
    assert_same_files(out, tmp_path / "whole" / "out")


def test_a_second_run_on_the_same_output_is_refused(inputs, tmp_path):
    out = tmp_path / "out"
    process = victim.start(recipe(inputs), str(out), 0.05, threads=1)
    try:
        wait_for_a_tensor(tmp_path / ".out.partial" / ".journal.jsonl", process.is_alive)
        with pytest.raises(OutputError, match="another merge is writing it"):
            mergeloom.merge(recipe(inputs), out)
        with pytest.raises(OutputError, match="another merge is writing it"):
            mergeloom.merge(recipe(inputs, weight=9), out)
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
    assert 0 <= mergeloom.merge(recipe(inputs), out).resumed < TENSORS


def command(text: str, folder: Path) -> list[str]:
    path = folder / "recipe.yml"
    path.write_text(text)
    code = "from mergeloom.cli.main import main; main()"
    return [sys.executable, "-c", code, "merge", str(path), str(folder / "out"), "--threads", "1"]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_the_command_is_stopped_and_goes_on(blow, inputs, tmp_path):
    """A slow method (an angle for every column) leaves time to hit it in the middle."""
    text = recipe(inputs) + "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n"
    mergeloom.merge(text, tmp_path / "whole" / "out")
    process = subprocess.Popen(command(text, tmp_path), stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.partial" / ".journal.jsonl"
    wait_for_a_tensor(journal, lambda: process.poll() is None)
    process.send_signal(blow)
    _, said = process.communicate()
    assert not (tmp_path / "out").exists()
    if blow == signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again" in said
        assert "Traceback" not in said
    else:
        assert process.returncode == -signal.SIGKILL
    again = subprocess.run(command(text, tmp_path), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "from an earlier run" in again.stderr
    assert_same_files(tmp_path / "out", tmp_path / "whole" / "out")

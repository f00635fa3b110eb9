from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergeloom.checkpoint import MemoryTensor, RowsOf, StoredTensor, StridedTensor, close_files
from mergeloom.checkpoint import open_files as files
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.views import read_bytes
from mergeloom.checkpoint.weights import read_file
from mergeloom.engine.scratch import Scratch
from mergeloom.errors import CheckpointError, Problems
from mergeloom.types import DTYPES, DTYPES_BY_TORCH_NAME, numel

from .support import good, raw, read

KINDS = [getattr(torch, name) for name in DTYPES_BY_TORCH_NAME]
FEW = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def filled(shape: tuple[int, ...], kind: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits at all, except in booleans."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=kind).element_size()
    values = torch.randint(0, 256, (numel(shape) * size,), generator=generator, dtype=torch.uint8)
    if kind == torch.bool:
        return (values > 127).view(shape)
    return values.view(kind).view(shape)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype, or a view of one: sliced, transposed, strided, expanded."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    tensor = filled(shape, draw(st.sampled_from(KINDS)), draw(st.integers(0, 9)))
    for _ in range(draw(st.integers(0, 3)) if shape else 0):
        axis = draw(st.integers(0, tensor.dim() - 1))
        change = draw(st.sampled_from(["turn", "cut", "skip", "repeat"]))
        if change == "turn":
            tensor = tensor.transpose(0, axis)
        elif change == "cut":
            tensor = tensor.narrow(axis, 0, max(0, tensor.shape[axis] - 1))
        elif change == "skip":
            cut = tuple(slice(None, None, 2) if n == axis else slice(None) for n in range(axis + 1))
            tensor = tensor[cut]
        elif tensor.dim() < 5:
            tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], 2, *tensor.shape[axis:])
    return tensor


def write(tensors: dict[str, torch.Tensor], path: Path, form: str) -> Path:
    if form == "safetensors":
        path = path / "x.safetensors"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
        return path
    path = path / "x.bin"
    path.unlink(missing_ok=True)
    torch.save(
        {"state_dict": tensors, "step": 3},
        path,
        _use_new_zipfile_serialization=form != "legacy",
        pickle_protocol=5 if form == "zip5" else 2,
    )
    return path


@pytest.mark.parametrize("form", ["safetensors", "zip", "zip5", "legacy"])
@FEW
@given(data=st.data(), state=st.dictionaries(st.text("ab.01", min_size=1), tensors(), min_size=1))
def test_every_range_of_every_tensor_reads_back(form, data, state, tmp_path):
    # The first tensor comes a second time: one storage, two names.
    first = next(iter(state))
    path = write({**state, "again": state[first]}, tmp_path, form)
    views = read_file(path, "x", Report(Problems()))  # as stored: a checkpoint widens 8-bit floats
    assert views is not None
    assert views.keys() == {*state, "again"}
    if form != "safetensors" and not isinstance(views[first], StridedTensor):
        assert views["again"] == views[first]
    for name, tensor in state.items():
        view, size = views[name], tensor.numel()
        assert (view.shape, DTYPES[view.dtype].torch_name) == (
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
        )
        start = data.draw(st.integers(0, size))
        stop = data.draw(st.integers(start, size))
        flat = tensor.contiguous().reshape(-1)
        for source in (view, MemoryTensor(tensor), pickle.loads(pickle.dumps(view))):
            assert raw(read(source, start, stop)) == raw(flat[start:stop])
            assert read_bytes(source, start, stop, Scratch(), "key") == raw(flat[start:stop])
            assert read(source).dtype == tensor.dtype
        view.prefetch(start, stop)
        if tensor.dim():
            low = data.draw(st.integers(0, tensor.shape[0]))
            rows = RowsOf(view, low, tensor.shape[0])
            assert raw(read(rows)) == raw(tensor[low:])
            assert read_bytes(rows, 0, numel(rows.shape), Scratch(), "key") == raw(tensor[low:])
            assert rows.shape == tuple(tensor[low:].shape)
            assert rows.files == view.files


def test_a_read_beyond_the_tensor_is_refused(tmp_path):
    view = StoredTensor(tmp_path / "x", 0, "F32", (2, 2))
    for start, stop in [(-1, 2), (0, 5), (3, 2)]:
        with pytest.raises(ValueError, match="of a tensor of 4"):
            read(view, start, stop)
    with pytest.raises(ValueError, match="rows"):
        RowsOf(view, 0, 3)


def test_a_file_cut_short_or_removed_after_opening_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    view = good(path).tensors["a"]
    strided = StridedTensor(path, view.offset, "F32", (10, 10), (1, 10))
    read(view)
    os.truncate(path, 200)
    with pytest.raises(CheckpointError, match=r"x\.safetensors was changed or truncated while"):
        read(view)
    with pytest.raises(CheckpointError, match=r"x\.safetensors was changed or truncated while"):
        read(strided)
    path.unlink()
    view.prefetch(0, 100)
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read: No such file"):
        read(view)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be asked")
def test_no_request_is_longer_than_linux_grants(tmp_path, monkeypatch):
    path, asked = tmp_path / "x.safetensors", []
    save_file({"a": torch.zeros(300_001)}, path)
    view = good(path).tensors["a"]
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, n, how: asked.append((start, n)))
    view.prefetch(7, 300_001)
    assert max(n for _, n in asked) <= 128 << 10
    ends = [start + n for start, n in asked]
    assert [view.offset + 28, *ends] == [*(start for start, _ in asked), view.offset + 1_200_004]


def test_a_replaced_file_is_read_anew(tmp_path):
    for value in (1.0, 2.0):
        save_file({"a": torch.full((8,), value)}, tmp_path / "new")
        os.replace(tmp_path / "new", tmp_path / "x.safetensors")
        assert read(good(tmp_path / "x.safetensors").tensors["a"])[0] == value


def test_many_files_from_many_threads_keep_few_descriptors(tmp_path):
    close_files()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    views = []
    for n in range(150):
        path = tmp_path / f"{n}.safetensors"
        save_file({"a": torch.full((64,), n, dtype=torch.int32)}, path)
        views.append(good(path).tensors["a"])

    def check(worker: int) -> None:
        scratch = Scratch()
        for n in range(450):
            n = (n * (worker + 7)) % 150
            assert views[n].read(3, 64, scratch, 0).unique().tolist() == [n]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(8)))
    assert 0 < len(files._files) <= 64
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 64
        close_files()
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_memory_tensors_are_equal_only_to_themselves_and_never_changed():
    tensor = torch.ones(4, requires_grad=True)
    view = MemoryTensor(tensor)
    assert view != MemoryTensor(tensor)
    assert len({view, view}) == 1
    read(view).zero_()
    assert tensor.tolist() == [1, 1, 1, 1]
    for bad, why in [
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.ones(2, device="meta"), "a meta tensor"),
        (torch.ones(2).to_sparse(), "a sparse_coo tensor"),
    ]:
        with pytest.raises(CheckpointError, match=why):
            MemoryTensor(bad)


def test_files_in_use_are_not_opened_again(tmp_path):
    """Many jobs hold the files of many models: together as many descriptors as there are files."""
    paths = [tmp_path / str(i) for i in range(60)]
    for path in paths:
        path.write_bytes(b"x")
    jobs = [[files.open_file(path) for path in paths] for _ in range(2)]
    assert jobs[0] == jobs[1]
    jobs.clear()
    close_files()
    assert files.open_file(paths[0]).path == paths[0]

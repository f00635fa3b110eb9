"""Are packed tensors, read from their parts and the parts read from them, what torch makes?"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.architecture.sources import Pack, Source
from mergeloom.checkpoint import MemoryTensor
from mergeloom.checkpoint.rearranged import CHUNK, rearrange
from mergeloom.checkpoint.views import read_bytes
from mergeloom.engine.scratch import Scratch
from mergeloom.types import View

from .support import good, raw, read

PACKS = [
    Pack(rows, columns, experts, turned, inter)
    for rows, columns, experts, turned, inter in product(
        [(4,), (3, 3), (4, 2, 2)], [None, 5], [None, 3], [False, True], [False, True]
    )
    if not (turned and columns is None) and not (inter and len(set(rows)) > 1)
]


def parts_of(pack: Pack) -> list[list[torch.Tensor]]:
    """Random parts, by expert."""
    tail = () if pack.columns is None else (pack.columns,)
    return [[torch.randn(rows, *tail) for rows in pack.rows] for _ in range(pack.experts or 1)]


def packed(pack: Pack, parts: list[list[torch.Tensor]]) -> torch.Tensor:
    """The definition, in torch's words."""
    made = []
    for own in parts:
        whole = torch.stack(own, 1).flatten(0, 1) if pack.interleaved else torch.cat(own)
        made.append(whole.T if pack.transposed else whole)
    return made[0].contiguous() if pack.experts is None else torch.stack(made)


def view(source: Source, tensors: dict[str, View]) -> View:
    assert source.shape is not None
    views = [tensors[name] for name in source.names]
    return rearrange(views, source.shape, source.axes, source.offset)


def same(got: View, wanted: torch.Tensor) -> None:
    """Whole, and in ranges of elements."""
    assert got.shape == tuple(wanted.shape)
    flat = wanted.reshape(-1)
    scratch, choice = Scratch(), random.Random(0)
    for _ in range(30):
        start, stop = sorted(choice.choices(range(flat.numel() + 1), k=2))
        assert torch.equal(got.read(start, stop, scratch, "key"), flat[start:stop])
        assert read_bytes(got, start, stop, scratch, "key") == raw(flat[start:stop])
        got.prefetch(start, stop)
    assert torch.equal(read(got), flat)


@pytest.mark.parametrize("cost", [0, 1 << 14], ids=["by runs", "read through"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("pack", PACKS, ids=str)
def test_packing_and_unpacking(pack, on_disk, cost, tmp_path, monkeypatch):
    monkeypatch.setattr("mergeloom.checkpoint.rearranged.READ_COST", cost)
    monkeypatch.setattr("mergeloom.checkpoint.rearranged.CHUNK", 7)
    torch.manual_seed(0)
    parts = parts_of(pack)
    whole = packed(pack, parts)
    names = {f"{e}.{k}": t for e, own in enumerate(parts) for k, t in enumerate(own)}
    tensors = {"whole": whole, **names}
    if on_disk:
        save_file(tensors, tmp_path / "model.safetensors")
        views = dict(good(tmp_path).tensors)
    else:
        views = {name: MemoryTensor(tensor) for name, tensor in tensors.items()}
    assert pack.shape == tuple(whole.shape)
    same(view(pack.joined(tuple(names), "text"), views), whole)
    for expert, own in enumerate(parts):
        for number, tensor in enumerate(own):
            same(view(pack.part("whole", number, expert), views), tensor)
    for other in PACKS:
        if replace(other, transposed=False, interleaved=False) == replace(
            pack, transposed=False, interleaved=False
        ):
            same(view(other.repacked("whole", pack), views), packed(other, parts))


def test_parts_of_two_dtypes_are_read_in_the_wider():
    views = {"a": MemoryTensor(torch.ones(2, dtype=torch.bfloat16)),
             "b": MemoryTensor(torch.full((3,), 1 + 2**-12))}  # fmt: skip
    joined = view(Pack((2, 3)).joined(("a", "b"), "text"), views)
    assert (joined.dtype, joined.saved_dtype) == ("F32", "BF16")
    assert read(joined).tolist() == [1, 1, *[1 + 2**-12] * 3]
    assert read(joined, 0, 2).dtype == torch.float32


def test_a_view_outside_of_its_tensor_is_refused():
    with pytest.raises(ValueError, match="element 5 of a tensor of shape"):
        rearrange([MemoryTensor(torch.ones(5))], (2,), ((2, 1),), 4)


def test_reading_takes_memory_for_a_chunk_and_not_for_the_tensor():
    """A transposed matrix, whose first row is scattered over all of it."""
    asked = []

    class Counted(Scratch):
        def bytes(self, key: object, nbytes: int) -> memoryview:
            asked.append(nbytes)
            return super().bytes(key, nbytes)

    matrix = MemoryTensor(torch.randn(600, 700))
    source = Pack((600,), 700, transposed=True).repacked("m", Pack((600,), 700))
    found = rearrange([matrix], (700, 600), source.axes)
    row = found.read(0, 600, Counted(), "key")
    assert torch.equal(row, matrix.tensor[:, 0])
    assert max(asked) <= 4 * CHUNK < 4 * matrix.tensor.numel()

"""The header of a GGUF file: what the gguf library reads, and what is told of damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.checkpoint.gguf_file.header import read_header
from mergeloom.checkpoint.report import Report
from mergeloom.errors import Problems

from ..support import opened, read
from . import files
from .files import Q


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A small llama without attention: enough for a header."""
    generator = torch.Generator().manual_seed(0)
    names = {
        "model.embed_tokens.weight": (files.ROWS, 256),
        "model.layers.0.mlp.up_proj.weight": (12, 256),
        "model.layers.1.self_attn.q_proj.weight": (128, 256),
        "model.norm.weight": (256,),
    }
    return {n: torch.randn(shape, generator=generator) for n, shape in names.items()}


@pytest.fixture(scope="module")
def whole(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    files.write(path, "llama", state, {"up_proj.weight": Q.Q4_0})
    return path.read_bytes()


def test_a_header_reads_as_the_library_reads_it(whole, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    header = read_header(path, "m", Report(Problems()))
    reader = gguf.GGUFReader(path)
    assert header is not None
    assert {
        name: (entry.kind, entry.shape, entry.offset) for name, entry in header.tensors.items()
    } == {
        tensor.name: (
            int(tensor.tensor_type), tuple(map(int, reversed(tensor.shape))), tensor.data_offset)
        for tensor in reader.tensors
    }  # fmt: skip
    for key, value in header.metadata.items():
        assert value == reader.fields[key].contents()
    left_out = {k for k in reader.fields if not k.startswith("GGUF.")} - header.metadata.keys()
    assert left_out == {"tokenizer.ggml.tokens"}


@pytest.mark.parametrize("kind", [k for k in Q if k.name[0] in "QITM"])
def test_every_format_of_the_library_is_read_or_named(kind, tmp_path):
    """Random bits in every format: what the library's own dequantize says, at any range."""
    in_block, size = gguf.GGML_QUANT_SIZES[kind]
    dice = np.random.default_rng(0)
    stored = dice.integers(0, 256, (files.ROWS, 512 // in_block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key in ("block_count", "embedding_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_tensor("token_embd.weight", stored, stored.shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint, errors, _ = opened(tmp_path / "m.gguf")
    with np.errstate(all="ignore"):
        try:
            wanted = torch.from_numpy(gguf.dequantize(stored, kind)).flatten()
        except NotImplementedError:
            assert f"is {kind.name}, which the gguf library does not dequantize" in errors[0]
            return
    assert checkpoint is not None
    view = checkpoint.tensors["model.embed_tokens.weight"]
    assert (view.shape, view.saved_dtype) == ((files.ROWS, 512), "BF16")
    for start, stop in ((0, wanted.numel()), (3, 3), (777, 40_000), (1024, 1100)):
        torch.testing.assert_close(
            read(view, start, stop), wanted[start:stop], rtol=0, atol=0, equal_nan=True
        )


def put(place: int, kind: str, number: int) -> Callable[[bytes], bytes]:
    new = struct.pack(f"<{kind}", number)
    return lambda data: data[:place] + new + data[place + len(new) :]


def named(text: bytes, after: int, kind: str, number: int) -> Callable[[bytes], bytes]:
    """A number changed that stands behind a name."""
    return lambda data: put(data.index(text) + len(text) + after, kind, number)(data)


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", "is empty"),
    "another file": (lambda data: b"GGML" + data[4:], "is no GGUF file"),
    "version 1": (put(4, "I", 1), "is a GGUF file of version 1; versions 2 and 3 are read"),
    "big-endian": (put(4, "I", 3 << 24), "is a GGUF file big-endian"),
    "tensors without end": (put(8, "Q", 1 << 60), "states 1,152,921,504,606,846,976 tensors"),
    "values without end": (put(16, "Q", 1 << 19), "has a text of 27,021,597,764,222,976 bytes"),
    "half of the header": (lambda data: data[:700], "is truncated: its header does not end"),
    "a long name": (put(24, "Q", 1 << 40), "has a text of 1,099,511,627,776 bytes where at most"),
    "a list without end": (named(b"ggml.tokens", 8, "Q", 1 << 62), "has lists of more than"),
    "an unknown value": (named(b"llama.block_count", 0, "I", 77), "a value of the unknown type 77"),
    "many dimensions": (named(b"output_norm.weight", 0, "I", 9), "has a tensor of 9 dimensions"),
    "a huge tensor": (named(b"token_embd.weight", 4, "Q", 1 << 62), "of the impossible shape"),
    "an unknown format": (named(b"token_embd.weight", 20, "I", 999), "is of the unknown type 999"),
    "a tensor behind the end": (named(b"token_embd.weight", 24, "Q", 1 << 40), "ends at byte"),
    "no such blocks": (named(b"blk.0.ffn_up.weight", 4, "Q", 255), "impossible shape [12, 255]"),
    "half of it": (lambda data: data[: len(data) // 2], "ends at byte"),
    "a model of another kind": (
        lambda data: data.replace(b"\x00llama", b"\x00mamba", 1),
        "is a GGUF file of the architecture mamba; those that can be read are llama, qwen2"),
    "a tensor of another kind": (
        lambda data: data.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight"),
        "has 1 tensors that its architecture does not have here: blk.0.ffn_xx.weight"),
    "no layers": (lambda data: data.replace(b"llama.block_count", b"llama.block_cnt__"),
                  "does not state llama.block_count"),
    "odd heads": (named(b"llama.attention.head_count", 4, "I", 3),
                  "the impossible shape [128, 256] for F32 and 3 heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(case, whole, tmp_path):
    change, message = DAMAGED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(change(whole))
    checkpoint, errors, _ = opened(path)
    assert checkpoint is None
    assert len(errors) == 1, errors
    assert errors[0].startswith(str(path))
    assert message in errors[0]


@given(place=st.integers(0, 1 << 30), bits=st.integers(1, 255))
def test_any_flipped_byte_is_read_or_told(place, bits, whole, tmp_path_factory):
    data = bytearray(whole)
    data[place % min(len(data), 4096)] ^= bits
    path: Path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(bytes(data))
    checkpoint, errors, _ = opened(path)
    assert (checkpoint is None) == bool(errors)

from __future__ import annotations

import json
import os
import time
import tracemalloc

import pytest

from .support import good, refused, safetensors_bytes

DAMAGED = ". It is damaged: download it again"


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9876\n"
EIGHT = b"\0" * 8
CASES = {
    "git-lfs": (POINTER, f"is a git-lfs pointer ({len(POINTER)} bytes): run git lfs pull"),
    "empty": (b"", "is empty, which is no safetensors file" + DAMAGED),
    "short": (b"\x05\0\0", "has only 3 bytes, which is no safetensors file" + DAMAGED),
    "absurd length": (
        b"\xff" * 8 + b"{}",
        "is not a safetensors file: it would have a header of 18,446,744,073,709,551,615 bytes, "
        "and the most is 100,000,000" + DAMAGED,
    ),
    "header cut": (
        safetensors_bytes({}, length=5000),
        "is truncated: its header alone needs 5,008 bytes, the file has 10. Download it again",
    ),
    "not JSON": (
        safetensors_bytes(b"{nope}"),
        "has a header that is not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1))" + DAMAGED,
    ),
    "deep JSON": (
        safetensors_bytes(b"[" * 100_000),
        "has a header that is not JSON (nested too deeply)" + DAMAGED,
    ),
    "not UTF-8": (
        safetensors_bytes(b'{"\xff": 1}'),
        "has a header that is not JSON ('utf-8' codec can't decode byte 0xff in position 2: "
        "invalid start byte)" + DAMAGED,
    ),
    "a list": (safetensors_bytes([]), "has a header that is not a JSON object" + DAMAGED),
    "twice": (
        safetensors_bytes(b'{"a": 1, "a": 2}'),
        'names the same key twice in its header: "a"',
    ),
    "metadata": (
        safetensors_bytes({"__metadata__": {"n": 1}}),
        "has a __metadata__ that is not an object of strings",
    ),
    "no entry": (
        safetensors_bytes({"a": {"dtype": "F32"}}),
        ': tensor "a" has no dtype, shape and data_offsets',
    ),
    "dtype": (
        safetensors_bytes({"a": entry("F4")}, EIGHT),
        ': tensor "a" has the unknown dtype "F4" (known: F64, F32, F16, BF16, F8_E4M3, F8_E5M2, '
        "F8_E8M0, C64, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)",
    ),
    "negative": (
        safetensors_bytes({"a": entry(shape=[-2, -1])}, EIGHT),
        ': tensor "a" has the impossible shape [-2, -1]',
    ),
    "a fraction": (
        safetensors_bytes({"a": entry(shape=[2.0])}, EIGHT),
        ': tensor "a" has the impossible shape [2.0]',
    ),
    "true": (
        safetensors_bytes({"a": entry(shape=[True])}, EIGHT),
        ': tensor "a" has the impossible shape [true]',
    ),
    "huge": (
        safetensors_bytes({"a": entry(shape=[2**70])}, EIGHT),
        ': tensor "a" has the impossible shape [1180591620717411303424]',
    ),
    "overflow": (
        safetensors_bytes({"a": entry(shape=[2**62, 2**62, 0, 2])}, EIGHT),
        ': tensor "a" of shape [4611686018427387904, 4611686018427387904, 0, 2] in F32 needs 0 '
        "bytes and has 8",
    ),
    "offsets": (
        safetensors_bytes({"a": entry(offsets=[8, 0])}, EIGHT),
        ': tensor "a" has the impossible data_offsets [8, 0]',
    ),
    "size": (
        safetensors_bytes({"a": entry(shape=[3])}, EIGHT),
        ': tensor "a" of shape [3] in F32 needs 12 bytes and has 8',
    ),
    "overlap": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, EIGHT * 2),
        ': tensors "a" and "b" overlap',
    ),
    "gap": (
        safetensors_bytes({"a": entry(offsets=(4, 12))}, b"\0" * 12),
        ': 4 bytes before tensor "a" belong to none',
    ),
    "data cut": (
        safetensors_bytes({"a": entry()}, b"\0" * 7),
        "is truncated: its header promises 77 bytes, the file has 76. Download it again",
    ),
    "trailing": (
        safetensors_bytes({"a": entry()}, EIGHT + b"!!"),
        "has 2 bytes after its last tensor that belong to none" + DAMAGED,
    ),
    "half a pair": (
        safetensors_bytes(b'{"\\ud800": {}}'),
        ': tensor "\\ud800" has a name that is not Unicode',
    ),
    "no tensors": (safetensors_bytes({"__metadata__": {"format": "pt"}}), "holds no tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_refused_in_one_line(case, tmp_path):
    content, message = CASES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    space = "" if message.startswith(":") else " "
    assert refused(path) == f"model.safetensors{space}{message}"


def test_every_wrong_tensor_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({f"t{n}": entry("F4") for n in range(9)}))
    from .support import opened

    _, errors, _ = opened(path)
    assert [e.rpartition("x.safetensors: ")[2][:11] for e in errors] == [
        *(f'tensor "t{n}"' for n in range(5)),
        "4 more tens",
    ]


def test_names_come_in_natural_order_and_empty_tensors_are_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    names = ["l.10.w", "l.2.w", "a", "l.02.w", "l.w", "7", "l.2.b"]
    header = {name: entry(offsets=(8 * n, 8 * n + 8)) for n, name in enumerate(names)}
    header["none"] = entry(shape=(3, 0), offsets=(16, 16))
    path.write_bytes(safetensors_bytes(header, b"\0" * 56))
    order = ["7", "a", "l.2.b", "l.02.w", "l.2.w", "l.10.w", "l.w", "none"]
    assert list(good(path).tensors) == order


def test_headers_of_a_70b_model_are_read_fast_in_small_memory(tmp_path):
    shard, index = 28 * 2 * 8192 * 8192 // 1, {}
    for number in range(30):
        header, position = {}, 0
        for n in range(28):
            name = f"model.layers.{number * 28 + n}.mlp.down_proj.weight"
            size = shard // 28
            header[name] = entry("BF16", [size // 2], [position, position + size])
            index[name] = f"model-{number + 1:05}-of-00030.safetensors"
            position += size
        with (tmp_path / index[name]).open("wb") as file:
            file.write(safetensors_bytes(json.dumps(header).ljust(100_000).encode()))
            file.truncate(file.tell() + position)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    start = time.process_time()
    tracemalloc.start()
    checkpoint = good(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(checkpoint.tensors) == 840
    assert sum(os.stat(p).st_size for p in tmp_path.iterdir()) > 100 * 2**30
    assert time.process_time() - start < 1
    assert peak < 8 * 2**20

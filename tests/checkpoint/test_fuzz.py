"""Damage anything anywhere: it opens, or it is refused with a message. Nothing else happens."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mergeloom.checkpoint import open_checkpoint
from mergeloom.errors import CheckpointError, Problems
from mergeloom.types import ModelReference, numel

from .support import read

MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TENSORS = {
    "a": torch.ones(3, 2),
    "b.1": torch.ones(2, dtype=torch.bfloat16),
    "t": torch.ones(4).t(),
}
TENSORS["turned"] = TENSORS["a"].t()


def saved(legacy: bool, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    value = {"state_dict": TENSORS, "epoch": 1.5, "big": 2**40, "set": {1}, "p": torch.Size([1])}
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return buffer.getvalue()


FILES = {
    "x.safetensors": save({k: v.contiguous() for k, v in TENSORS.items()}, {"format": "pt"}),
    "zip.bin": saved(legacy=False),
    "zip5.pt": saved(legacy=False, protocol=5),
    "legacy.pth": saved(legacy=True),
}
PIECES = [b"", b"\0", b"\xff", b"\xff\xff\xff\x7f", b"0", b"9" * 20, b"-", b"[", b'"', b"PK\5\6"]
PIECES += [b".", b"r\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 5 + b"\0\0\0", b"R", b"}", b"(", b"h\0"]


def check(path) -> None:
    tracemalloc.start()
    problems = Problems()
    checkpoint = open_checkpoint(ModelReference(str(path)), problems)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert (checkpoint is None) == bool(problems.errors)
    for problem in problems.errors:
        text = str(problem)
        text.encode()
        assert path.name in text
        assert len(text) < 600
        assert "\n" not in text
    for view in checkpoint.tensors.values() if checkpoint else ():
        if numel(view.shape) < 1000:
            try:
                read(view)
            except CheckpointError as error:
                raise AssertionError("a header promised bytes that are not there") from error


@pytest.mark.parametrize("name", FILES)
@MANY
@given(data=st.data())
def test_damaged_files_are_only_ever_refused(name, data, tmp_path):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 4))
        piece = data.draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)))
        content[place : place + length] = piece
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / name
    path.write_bytes(content)
    check(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
SIZES = st.lists(st.integers(-1, 5) | st.integers(0, 2**65) | JSON, max_size=3) | JSON
ENTRY = JSON | st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "U8", "x"]) | JSON, "shape": SIZES, "data_offsets": SIZES}
)


@MANY
@given(header=st.dictionaries(st.text(max_size=3), ENTRY, max_size=3) | JSON, data=st.binary())
def test_any_json_as_a_header_is_only_ever_refused(header, data, tmp_path):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    check(path)


@MANY
@given(document=JSON | st.fixed_dictionaries({"weight_map": JSON}), as_config=st.booleans())
def test_any_json_as_an_index_or_config_is_only_ever_refused(document, as_config, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "s.safetensors").write_bytes(FILES["x.safetensors"])
    name = "config.json" if as_config else "model.safetensors.index.json"
    (folder / name).write_text(json.dumps(document))
    check(folder)

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from .support import good, opened, raw, read, refused

ADVICE = (
    "which is refused: only dense tensors are loaded. Take its safetensors, or, if you trust its "
    "author, save the state_dict alone with torch"
)


class Runs:
    """A pickle that runs a command when it is loaded by somebody careless."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_hostile_pickle_is_refused_by_name_and_not_run(legacy, protocol, tmp_path):
    path, marker = tmp_path / "x.bin", tmp_path / "ran"
    torch.save(
        {"a": torch.ones(2), "b": Runs(marker)},
        path,
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )
    system = f"{os.system.__module__}.system"
    assert refused(path) == f"x.bin asks for {system}, {ADVICE}"
    assert not marker.exists()


def test_other_objects_are_refused_by_name(tmp_path):
    path = tmp_path / "training_args.bin"
    torch.save({"a": torch.ones(2), "since": datetime.date(2024, 1, 1)}, path)
    assert refused(path) == f"training_args.bin asks for datetime.date, {ADVICE}"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"state_dict": {"a": torch.ones(2)}, "epoch": 3, "lr": 0.1, "name": "x"}, ["a"]),
        ({"model": {"state_dict": {"a": torch.ones(2)}}, "optimizer": {}}, ["a"]),
        ({"params": {"a": torch.ones(1)}, "params_ema": {"b": torch.ones(2)}}, ["b"]),
        ({"module": torch.ones(3), "model": {"a": torch.ones(1)}}, ["module"]),
        (torch.nn.Linear(2, 3).state_dict(), ["bias", "weight"]),
        (collections.defaultdict(int, a=torch.ones(2)), ["a"]),
        ({"model": {"a": torch.ones(2)}, "steps": collections.Counter([4, 4])}, ["a"]),
    ],
)
def test_state_dicts_are_found_where_trainers_put_them(value, names, tmp_path):
    torch.save(value, tmp_path / "x.pt")
    checkpoint, errors, warnings = opened(tmp_path / "x.pt")
    assert errors == []
    assert list(checkpoint.tensors) == names
    assert len(warnings) == ("params" in value or "module" in value)


def test_parameters_with_attributes_and_every_known_dtype(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    parameter.note = {"a": torch.Size([2])}
    torch.save({"p": parameter, "d": torch.float16, "v": torch.device("cpu")}, tmp_path / "x.pth")
    view = good(tmp_path / "x.pth").tensors["p"]
    assert raw(read(view)) == raw(parameter)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "holds no tensors by name, where a state dict was expected"),
        (torch.ones(2), "holds one tensor without a name, where a state dict was expected"),
        ([torch.ones(2)], "holds no tensors by name, where a state dict was expected"),
        ({1: torch.ones(2)}, "holds tensors whose names are not text"),
        (
            {"a": torch.ones(2).to_sparse()},
            f"asks for torch._utils._rebuild_sparse_tensor, {ADVICE}",
        ),
        (
            {"a": torch.ones(2, dtype=torch.complex64).conj()},
            "holds a tensor with a pending conjugation or negation",
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(value, message, tmp_path):
    torch.save(value, tmp_path / "x.pt")
    assert refused(tmp_path / "x.pt") == f"x.pt {message}"


def rezipped(path, change):
    """The same archive with entries changed: name → (name, bytes, compression) or None."""
    with zipfile.ZipFile(path) as old:
        entries = [(e.filename, old.read(e), zipfile.ZIP_STORED) for e in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for entry in entries:
            if changed := change(*entry):
                new.writestr(changed[0], changed[1], changed[2])


BIG_MEMO = b"\x80\x02Nr\xff\xff\xff\xff."
DEFLATED = zipfile.ZIP_DEFLATED
DAMAGED = ". It is damaged: download it again"
ZIP_CASES = {
    "compressed": (
        lambda n, d, c: (n, d, DEFLATED),
        "has the compressed entry x/data.pkl: save it again with torch",
    ),
    "big-endian": (
        lambda n, d, c: (n, b"big" if n == "x/byteorder" else d, c),
        "is written in big-endian byte order: save it on another machine",
    ),
    "no data.pkl": (
        lambda n, d, c: None if n == "x/data.pkl" else (n, d, c),
        "is a zip archive without torch's data.pkl",
    ),
    "TorchScript": (
        lambda n, d, c: ("x/constants.pkl" if n == "x/version" else n, d, c),
        "is a TorchScript program: save its state_dict() instead",
    ),
    "storage missing": (
        lambda n, d, c: None if n == "x/data/0" else (n, d, c),
        "is truncated or damaged: tensor 'a' needs 400 bytes of storage 0, which has 0" + DAMAGED,
    ),
    "storage cut": (
        lambda n, d, c: (n, d[:-1] if n == "x/data/0" else d, c),
        "is truncated or damaged: tensor 'a' needs 400 bytes of storage 0, which has 399" + DAMAGED,
    ),
    "no pickle": (
        lambda n, d, c: (n, b"\x80\x02]" if n == "x/data.pkl" else d, c),
        "holds a damaged pickle: it ends too early or is too long",
    ),
    "memo bomb": (
        lambda n, d, c: (n, BIG_MEMO if n == "x/data.pkl" else d, c),
        "holds no tensors by name, where a state dict was expected",
    ),
}


@pytest.mark.parametrize("case", ZIP_CASES)
def test_a_wrong_archive_is_refused(case, tmp_path):
    change, message = ZIP_CASES[case]
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(100)}, path)
    rezipped(path, change)
    assert refused(path) == f"x.pt {message}"


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(100)}, path)
    os.truncate(path, path.stat().st_size - 30)
    assert refused(path) == "x.bin is a truncated or damaged zip archive" + DAMAGED
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    size = path.stat().st_size
    os.truncate(path, size - 30)
    assert refused(path) == (
        f"x.bin is truncated: storage {key_of(path)} needs {size:,} bytes, the file has "
        f"{size - 30:,}. Download it again"
    )
    for content, message in [
        (b"", "is empty" + DAMAGED),
        (b"GGUF....", "is a GGUF file: convert it to safetensors first"),
        (b"\x89HDF\r\n", "is an HDF5 file: convert it to safetensors first"),
        (b"sys_info\0".ljust(600, b"\0"), "is in the tar format of torch before 0.1.10: save it"),
        (b"hello", "is not a file written by torch.save: it is neither a zip archive nor a pickle"),
        (pickle.dumps({"a": 1}), "is a pickle that torch.save did not write"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer (43 bytes): run"),
    ]:
        path.write_bytes(content)
        assert refused(path).startswith(f"x.bin {message}")


def key_of(path):
    """The key of the only storage of a legacy file."""
    file = io.BytesIO(path.read_bytes())
    keys = []

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            return lambda *arguments: None

        def persistent_load(self, identifier):
            keys.append(identifier[2])

    for _ in range(4):
        Reader(file).load()
    return keys[0]


def pickled_tensor(shape, stride, start=0, count=4):
    """A data.pkl with one tensor, as torch writes it but for the numbers."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            arguments = (Storage(), start, shape, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", torch.FloatStorage, "0", "cpu", count
            return None

    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"a": Tensor()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 3), (3, 1)), "of shape [2, 3] that reaches beyond its storage"),
        (((4,), (1,), 1), "of shape [4] that reaches beyond its storage"),
        (((2,), (2**62,)), "of shape [2] that reaches beyond its storage"),
        (((2,), (-1,), 1), "with an impossible shape, stride or offset"),
        (((-2,), (1,)), "with an impossible shape, stride or offset"),
        (((2,), (1, 1)), "with an impossible shape, stride or offset"),
        (((2.0,), (1,)), "with an impossible shape, stride or offset"),
        (((2**48,), (0,)), "with an impossible shape, stride or offset"),
        (((1,) * 65, (1,) * 65), "with an impossible shape, stride or offset"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(arguments, message, tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled_tensor(*arguments))
        archive.writestr("x/data/0", struct.pack("<4f", 1, 2, 3, 4))
    assert refused(path) == f"x.pt holds a tensor {message}"


def test_headers_are_read_without_torch(tmp_path):
    torch.save({"a": torch.ones(4)}, tmp_path / "x.bin")
    program = (
        "import sys\n"
        "from mergeloom.checkpoint import open_checkpoint\n"
        "from mergeloom.errors import Problems\n"
        "from mergeloom.types import ModelReference\n"
        f"found = open_checkpoint(ModelReference({str(tmp_path / 'x.bin')!r}), Problems())\n"
        "assert found.tensors['a'].shape == (4,)\n"
        "assert not {'torch', 'huggingface_hub'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


T = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"state_dict": T, "epoch": 3}, []),
        ({"model": {"state_dict": T}}, []),
        ({"step": torch.tensor(7), "model": T}, ["the tensors under step are not used"]),
        ({"model": T, "optimizer": OPTIMIZER}, ["the tensors under optimizer are not used"]),
        ({"generator": T}, ["the weights are those under generator"]),
        ({"generator": T, "optim_g": OPTIMIZER},
         ["the weights are those under generator", "the tensors under optim_g are not used"]),
        ({f"module.{n}": t for n, t in T.items()}, []),
        ({"state_dict": {f"_orig_mod.module.{n}": t for n, t in T.items()}}, []),
        ({**T, "extra": {"more": torch.ones(1)}}, ["the tensors under extra are not used"]),
    ],
)  # fmt: skip
def test_the_weights_in_what_training_programs_save(value, told, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(value, path)
    checkpoint, errors, warnings = opened(path)
    assert errors == []
    assert [w.rpartition("x.pt: ")[2] for w in warnings] == told
    assert {n: read(v).tolist() for n, v in checkpoint.tensors.items()} == {
        n: t.tolist() for n, t in T.items()
    }


def test_several_dictionaries_of_weights_are_refused(tmp_path):
    torch.save({"generator": T, "discriminator": T}, tmp_path / "gan.pt")
    message = refused(tmp_path / "gan.pt")
    assert message.startswith("gan.pt holds several dictionaries of tensors (generator, discrim")


def test_looking_for_tensors_takes_no_time_in_a_pickle_of_references(tmp_path):
    nest: dict = {str(i): 0 for i in range(300)}
    for _ in range(3):
        nest = {str(i): nest for i in range(300)}
    torch.save(nest, tmp_path / "deep.pt")
    assert "holds no tensors by name" in refused(tmp_path / "deep.pt")

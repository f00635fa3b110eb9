from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.checkpoint import fingerprint
from mergeloom.types import ModelReference

from .support import good, opened, raw, read, refused, safetensors_bytes


@pytest.fixture
def model(tmp_path, monkeypatch):
    """An empty folder, named as the recipe would: relative."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def put(folder, files):
    """Each file with a tensor of its own name and value, or with the bytes that are given."""
    for n, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            save_file({t: torch.full((2,), float(n)) for t in content}, path)
        else:
            torch.save({t: torch.full((2,), float(n)) for t in content}, path)


def index(**where):
    return json.dumps({"metadata": {}, "weight_map": where}).encode()


@pytest.mark.parametrize(
    ("files", "used"),
    [
        (["model.safetensors", "pytorch_model.bin", "other.safetensors"], "model.safetensors"),
        (["diffusion_pytorch_model.safetensors", "x.bin"], "diffusion_pytorch_model.safetensors"),
        (["pytorch_model.bin", "flax_model.msgpack", "training_args.bin"], "pytorch_model.bin"),
        (["anything.safetensors", "a.bin", "b.bin"], "anything.safetensors"),
        (["weights.pth", "optimizer.pt", "rng_state_0.pth"], "weights.pth"),
        (["consolidated.safetensors", "my.safetensors"], "my.safetensors"),
        (["consolidated.safetensors"], "consolidated.safetensors"),
        (["model.safetensors", "adapter_model.safetensors"], "model.safetensors"),
    ],
)
def test_the_file_that_is_used(files, used, model):
    put(model, {name: [name] for name in files})
    assert list(good("m").tensors) == [used]
    assert [p.name for p in good("m").tensors[used].files] == [used]


def test_an_index_decides_and_what_it_does_not_name_is_used_too(model):
    put(
        model,
        {
            "a.safetensors": ["one", "both", "extra"],
            "sub/b.safetensors": ["two", "both"],
            "stale.safetensors": ["old"],
            "x.safetensors.index.json": index(
                one="a.safetensors", two="sub/b.safetensors", both="sub/b.safetensors"
            ),
        },
    )
    checkpoint = good("m")
    assert {n: v.files[0].name for n, v in checkpoint.tensors.items()} == {
        "both": "b.safetensors",
        "extra": "a.safetensors",
        "one": "a.safetensors",
        "two": "b.safetensors",
    }


def test_a_single_file_beside_a_complete_sharded_set_is_used_with_a_warning(model):
    put(model, {"model.safetensors": ["new"], "s.safetensors": ["old"]})
    put(model, {"model.safetensors.index.json": index(old="s.safetensors")})
    checkpoint, errors, warnings = opened("m")
    assert (list(checkpoint.tensors), errors) == (["new"], [])
    assert warnings == [
        "m has both model.safetensors and the shards of model.safetensors.index.json: "
        "model.safetensors is used, as transformers does. Remove the older of the two"
    ]
    (model / "s.safetensors").unlink()
    good("m")


INDEX = "model.safetensors.index.json"
WRONG = {
    "empty": ({}, "m has no weights: it is empty"),
    "no weights": ({"config.json": b"{}"}, "m has no weights. It has config.json"),
    "foreign": (
        {"m.msgpack": b"GGUF", "tokenizer.json": b"{}"},
        "m has its weights only as m.msgpack. Flax msgpack is not read: convert it to safetensors "
        "with transformers",
    ),
    "subfolders": (
        {"unet/a.safetensors": ["a"], "vae/a.bin": ["a"]},
        "m has no weights of its own, but its subfolders have: unet, vae. Name one of them",
    ),
    "several": (
        {"b.safetensors": ["b"], "a.safetensors": ["a"]},
        "m has several weight files and no index: a.safetensors, b.safetensors. Name the one to "
        "merge, for example m/a.safetensors",
    ),
    "no index": (
        {f"pytorch_model-0000{n}-of-00002.bin": ["a"] for n in (1, 2)},
        "m has the shards pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin but "
        "not pytorch_model.bin.index.json. Download the index, which says where each tensor is",
    ),
    "several indexes": (
        {f"{n}.safetensors.index.json": index(a="a.safetensors") for n in "xy"},
        "m has several sets of weights: x.safetensors.index.json, y.safetensors.index.json. Keep "
        "one, or name a weight file",
    ),
    "missing shards": (
        {"1.safetensors": ["a"], INDEX: index(**{str(n): f"{n}.safetensors" for n in range(1, 4)})},
        "m: 2 of 3 shards are missing: 2.safetensors, 3.safetensors. Download what is missing, or "
        f"remove the index {INDEX}",
    ),
    "outside": (
        {INDEX: index(a="../x", b="/etc/x", c="..\\x", d="C:x", e="", f="a/../../x")},
        f'm/{INDEX} names files that are not plainly inside of the folder: "", "../x", '
        '"..\\\\x", "/etc/x", "C:x", "a/../../x"',
    ),
    "absent tensors": (
        {"1.safetensors": ["a"], INDEX: index(a="1.safetensors", b="1.safetensors")},
        f"m/{INDEX} names 1 tensors that are in no shard: b. Index and shards are of different "
        "models: download both again",
    ),
    "twice": (
        {
            "1.safetensors": ["a", "x"],
            "2.safetensors": ["b", "x"],
            INDEX: index(a="1.safetensors", b="2.safetensors"),
        },
        "m: a tensor is in both 1.safetensors and 2.safetensors: x",
    ),
    "no map": ({INDEX: b'{"weight_map": 1}'}, f"m/{INDEX} has no weight_map from tensors to files"),
    "empty map": ({INDEX: index()}, f"m/{INDEX} names no tensors"),
    "index a list": ({INDEX: b"[]"}, f"m/{INDEX} holds a JSON list, not an object"),
    "config": (
        {"model.safetensors": ["a"], "config.json": b"{,}"},
        "m/config.json is not valid JSON: Expecting property name enclosed in double quotes: line "
        "1 column 2 (char 1)",
    ),
    "config a list": (
        {"model.safetensors": ["a"], "config.json": b"[]"},
        "m/config.json holds a JSON list, not an object",
    ),
    "lora": (
        {
            "adapter_model.safetensors": ["a"],
            "adapter_config.json": b'{"base_model_name_or_path": "org/base"}',
        },
        "m is a LoRA adapter of org/base, which is not supported yet in this version. "
        "Merge it into the model first (peft merge_and_unload)",
    ),
    "lora of nothing": (
        {"adapter_config.json": b"nope"},
        "m is a LoRA adapter of another model, which is not supported yet in this version. "
        "Merge it into the model first (peft merge_and_unload)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_is_no_model_says_what_it_has(case, model):
    files, message = WRONG[case]
    put(model, files)
    assert refused("m") == message


def test_all_mistakes_come_at_once_with_their_place(model):
    bad = safetensors_bytes(b"{}", b"!")
    put(model, {"config.json": b"", "1.safetensors": bad, "2.safetensors": b""})
    put(model, {INDEX: index(a="1.safetensors", b="2.safetensors")})
    _, errors, _ = opened("m", where="models[1]", line=7)
    assert [e.split(". ")[0] for e in errors] == [
        "models[1] (line 7): m/config.json is not valid JSON: Expecting value: line 1 column 1 "
        "(char 0)",
        "models[1] (line 7): m/1.safetensors has 1 bytes after its last tensor that belong to none",
        "models[1] (line 7): m/2.safetensors is empty, which is no safetensors file",
    ]


def test_side_files_are_all_that_is_not_weights(model, tmp_path):
    kept = [
        "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin",
        "additional_chat_templates/tool.jinja",
        "config.json",
        "generation_config.json",
        "modeling_x.py",
        "modules.json",
        "tokenizer.model",
    ]
    left = [
        *("README.md", "LICENSE", "LICENSE.txt", ".gitattributes", ".cache/x.json", ".git/HEAD"),
        *("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "a.gguf", "x.onnx"),
        *("pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.bin"),
        *("training_args.bin", "trainer_state.json", "optimizer.pt", "rng_state_0.pth"),
        *("events.out.tfevents.1", "checkpoint-5/config.json", "checkpoint-5/model.safetensors"),
        *("onnx/config.json", "original/params.json", "metal/model.bin", "metal/config.json"),
    ]
    put(model, dict.fromkeys(kept + left, b"{}"))
    put(model, {"model.safetensors": ["a"]})
    put(model, {"modules.json": b'[{"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../x"}]'})
    outside = tmp_path / "outside"
    put(outside, {"secret.txt": b"s", "merges.txt": b"m"})
    (model / "linked").symlink_to(outside, target_is_directory=True)
    (model / "merges.txt").symlink_to(outside / "merges.txt")
    (model / "broken.txt").symlink_to(outside / "nothing")
    assert good("m").side_files == tuple(sorted([*kept, "merges.txt"]))


@pytest.mark.parametrize("path", [".", "..", "./", ""])
def test_a_module_that_is_the_folder_itself_does_not_make_weights_side_files(model, path):
    put(model, {"modules.json": f'[{{"path": "{path}"}}]'.encode(), "model.safetensors": ["a"]})
    assert good("m").side_files == ("modules.json",)


def test_config_is_raw_and_its_architecture_can_be_overridden(model):
    put(model, {"model.safetensors": ["a"]})
    assert good("m").config is None
    put(model, {"config.json": b'\xef\xbb\xbf{"architectures": ["A"], "x": NaN}'})
    assert good("m").config["architectures"] == ["A"]
    reference = ModelReference("m", override_architecture="B")
    assert good(reference).config["architectures"] == ["B"]


def test_a_single_file_has_no_config_and_no_side_files(model):
    put(model, {"a.safetensors": ["a"], "b.bin": ["a"], "config.json": b"{}"})
    for name in ("m/a.safetensors", "m/b.bin"):
        checkpoint = good(name)
        assert (checkpoint.config, checkpoint.side_files) == (None, ())
        assert (checkpoint.label, checkpoint.is_local) == (name, True)
    assert refused("m/config.json") == (
        "config.json is not a weight file (.safetensors, .bin, .pt, .pth, .ckpt, .gguf). Name "
        "the model's folder: m"
    )
    put(model, {"x.onnx": b"GGUF"})
    assert refused("m/x.onnx") == "x.onnx is a ONNX file: convert it to safetensors first"


def test_a_cached_snapshot_of_links_is_a_folder_like_others(model, tmp_path):
    put(tmp_path, {"blobs/1": b"{}", "blobs/2.safetensors": ["a"]})
    (model / "config.json").symlink_to("../blobs/1")
    (model / "model.safetensors").symlink_to("../blobs/2.safetensors")
    checkpoint = good("m")
    assert (checkpoint.config, checkpoint.side_files) == ({}, ("config.json",))
    assert raw(read(checkpoint.tensors["a"])) == raw(torch.ones(2))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_fingerprint_knows_content_but_not_place_and_time(suffix, model, tmp_path):
    values = torch.arange(200_000.0)
    name = f"pytorch_model.{suffix}"
    for folder in ("m", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        if suffix == "bin":
            torch.save({"a": values}, tmp_path / folder / name)
        else:
            save_file({"a": values}, tmp_path / folder / name)
    first = fingerprint(good("m"))
    assert fingerprint(good("other")) == first
    os.utime(model / name, ns=(5, 5))
    assert fingerprint(good("m")) == first
    with (model / name).open("r+b") as file:
        file.seek(good("m").tensors["a"].offset)
        file.write(b"\1")
    assert fingerprint(good("m")) != first
    (tmp_path / "other" / name).rename(tmp_path / "other" / f"x.{suffix}")
    assert fingerprint(good("other")) != first

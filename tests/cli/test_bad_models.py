"""Models that cannot be merged, and the exact words that say why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .models import linear, model, second, sharded, write_json
from .program import refused

LOCAL = "does not exist (looks like a local path)"
PLUS = "'+' separates a LoRA; write {model: {path: ...}} for a path with a '+' in it"
AT = "'@' separates a revision; write {model: {path: ...}} for a path with an '@' in it"
HUB = "does not exist, and is no id of the hub either (organisation/name)"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 99\n"


NOWHERE = {
    "./bse": f"./bse {LOCAL}. Nearest: ./base",
    "./b": f"./b {LOCAL}. Nearest: ./B",
    "./base/../bas": f"./base/../bas {LOCAL}. Nearest: ./base/../base",
    "HERE/bse": f"HERE/bse {LOCAL}. Nearest: HERE/base",
    "/x/nope": f"/x/nope {LOCAL}",
    "~/nope": f"~/nope {LOCAL}",
    "./my+model": f"./my+model {LOCAL}. {PLUS}",
    "./my@model": f"./my@model {LOCAL}. {AT}",
    "./base/model.safetensor": f"./base/model.safetensor {LOCAL}. "
    "Nearest: ./base/model.safetensors",
    "x/y/z": f"x/y/z {LOCAL}",
    r"G:\9B\base": rf"G:\9B\base {LOCAL}",
    "my model": f"my model {HUB}",
    "mödel 🤖": f"mödel 🤖 {HUB}",
    "a..b/--": f"a..b/-- {HUB}",
    "x" * 5000: f"{'x' * 200} {HUB}",
    "org/A@a..b": "org/A is not on this machine, and 'a..b' is no revision of the hub (a branch, a "
    f"tag or a commit). {AT}",
}


@pytest.mark.parametrize("path", NOWHERE, ids=range(len(NOWHERE)))
def test_a_path_that_does_not_exist(path, models):
    (models / "base" / "x").touch()
    recipe = linear("./A", path.replace("HERE", str(models)))
    assert refused(recipe) == second(NOWHERE[path])


def test_every_missing_model_is_told_in_the_order_of_the_file(models):
    recipe = linear("./A2", "./C", "/x/y", more="base_model: ./bace")
    assert refused(recipe) == [
        f"models[0] (line 3): ./A2 {LOCAL}. Nearest: ./A",
        f"models[1] (line 4): ./C {LOCAL}",
        f"models[2] (line 5): /x/y {LOCAL}",
        f"base_model (line 6): ./bace {LOCAL}. Nearest: ./base",
    ]


def test_a_hub_model_without_a_connection(models, tmp_path):
    (models / "org" / "Ax").mkdir(parents=True)
    said = (
        f"is neither a local path nor in the cache {tmp_path / 'cache'}, and with HF_HUB_OFFLINE "
        "set nothing is downloaded"
    )
    assert refused(linear("org/A", "Qwen/Qwen2.5-7B", "gpt2")) == [
        f"models[0] (line 3): org/A {said}. Nearest: org/Ax",
        f"models[1] (line 4): Qwen/Qwen2.5-7B {said}. "
        "Unset HF_HUB_OFFLINE, or download the model first",
        f"models[2] (line 5): gpt2 {said}. Unset HF_HUB_OFFLINE, or download the model first",
    ]


# --- folders and files ---------------------------------------------------------------------------


class Runs:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def adapter(folder: Path, base: str | None = "org/Base") -> None:
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": base} if base else {})
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GGUF....")


def pickled(folder: Path, value: object, name: str = "pytorch_model.bin") -> None:
    folder.mkdir()
    torch.save(value, folder / name)


def cut(folder: Path, size: int) -> None:
    model(folder)
    os.truncate(folder / "model.safetensors", size)


def replaced(folder: Path, content: bytes) -> None:
    model(folder)
    (folder / "model.safetensors").write_bytes(content)


def without(folder: Path, *names: str) -> None:
    sharded(folder)
    for name in names:
        (folder / name).unlink()


def pointing_out(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../A/model-00002"))


def linked(folder: Path, target: str) -> None:
    model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)


SHARD = "model-0000{}-of-00003.safetensors"
ALL = ", ".join(SHARD.format(i) for i in (1, 2, 3))
AGAIN = "Download what is missing, or remove the index model.safetensors.index.json"
LORA = (
    "which is not supported yet in this version. "
    "Merge it into the model first (peft merge_and_unload)"
)
SYSTEM = f"{os.system.__module__}.system"

# What is made of the folder X → what is said of it.
FOLDERS = {
    "adapter": (adapter, f"./X is a LoRA adapter of org/Base, {LORA}"),
    "adapter of something": (
        lambda x: adapter(x, None),
        f"./X is a LoRA adapter of another model, {LORA}",
    ),
    "empty": (lambda x: x.mkdir(), "./X has no weights: it is empty"),
    "no weights": (
        lambda x: files(x, "merges.txt", "notes.txt"),
        "./X has no weights. It has merges.txt, notes.txt",
    ),
    "only a trainer's state": (
        lambda x: pickled(x, {"lr": 1}, "training_args.bin"),
        "./X has no weights. It has training_args.bin",
    ),
    "foreign": (
        lambda x: files(x, "notes.txt", "m.h5"),
        "./X has its weights only as m.h5. "
        "Keras HDF5 is not read: convert it to safetensors with transformers",
    ),
    "in a subfolder": (
        lambda x: files(x, "notes.txt", "checkpoint-5/model.safetensors"),
        "./X has no weights of its own, but its subfolders have: checkpoint-5. Name one of them",
    ),
    "git-lfs pointer": (
        lambda x: replaced(x, POINTER),
        "./X/model.safetensors is a git-lfs pointer (127 bytes): run git lfs pull",
    ),
    "truncated": (
        lambda x: cut(x, 4000),
        "./X/model.safetensors is truncated: its header promises 7,536 bytes, "
        "the file has 4,000. Download it again",
    ),
    "truncated in the header": (
        lambda x: cut(x, 100),
        "./X/model.safetensors is truncated: its header alone needs 2,976 bytes, "
        "the file has 100. Download it again",
    ),
    "of no length": (
        lambda x: cut(x, 0),
        "./X/model.safetensors is empty, which is no safetensors file. "
        "It is damaged: download it again",
    ),
    "two shards missing": (
        lambda x: without(x, SHARD.format(1), SHARD.format(3)),
        f"./X: 2 of 3 shards are missing: {SHARD.format(1)}, {SHARD.format(3)}. {AGAIN}",
    ),
    "all shards missing": (
        lambda x: without(x, *(SHARD.format(i) for i in (1, 2, 3))),
        f"./X: 3 of 3 shards are missing: {ALL}. {AGAIN}",
    ),
    "index missing": (
        lambda x: without(x, "model.safetensors.index.json"),
        f"./X has the shards {ALL} but not model.safetensors.index.json. "
        "Download the index, which says where each tensor is",
    ),
    "index that points outside": (
        pointing_out,
        "./X/model.safetensors.index.json names files that are not plainly inside of the "
        f'folder: "../A/{SHARD.format(2)}"',
    ),
    "pickle with code": (
        lambda x: pickled(x, {"a": Runs(), "w": torch.zeros(3)}),
        f"./X/pytorch_model.bin asks for {SYSTEM}, which is refused: only dense tensors are loaded."
        " Take its safetensors, or, if you trust its author, save the state_dict alone with torch",
    ),
    "copied links": (
        lambda x: linked(x, "../blobs/1"),
        "./X has only links to weights that are not there: model.safetensors. Copy the files "
        "themselves (cp -L), or download the model again",
    ),
    "config of git-lfs": (
        lambda x: (model(x) / "config.json").write_bytes(POINTER),
        "./X/config.json is a git-lfs pointer (127 bytes): run git lfs pull",
    ),
    "config null": (
        lambda x: (model(x) / "config.json").write_text("null"),
        "./X/config.json holds a JSON null, not an object",
    ),
    "broken config": (
        lambda x: (model(x) / "config.json").write_text("{"),
        "./X/config.json is not valid JSON: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_model(case, models):
    make, message = FOLDERS[case]
    make(models / "X")
    assert refused(linear("./A", "./X")) == second(message)
    assert not Path("ran").exists()


SINGLE = {
    "training_args.bin": (
        "./X/training_args.bin holds no tensors by name, where a state dict was expected"
    ),
    "config.json": (
        "./X/config.json is not a weight file (.safetensors, .bin, .pt, .pth, .ckpt, .gguf). "
        "Name the model's folder: X"
    ),
    "m.gguf": "./X/m.gguf is a GGUF file of version 774778414; versions 2 and 3 are read. It is "
    "damaged: download it again",
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_file_that_is_no_model(name, models):
    pickled(models / "X", {"lr": 1}, "training_args.bin")
    files(models / "X", "config.json", "m.gguf")
    assert refused(linear("./A", f"./X/{name}")) == second(SINGLE[name])


def test_a_lora_reference_is_refused_by_name(models):
    adapter(models / "lora")
    text = "LoRA adapters are not supported yet in this version"
    hint = "merge the adapter into the model first (peft merge_and_unload)"
    assert refused(linear("./A+./lora", "./B+./none")) == [
        f"models[0] (line 3): {text}: ./A+./lora; {hint}",
        f"models[1] (line 4): {text}: ./B+./none; {hint}",
    ]


def test_five_wrong_models_are_told_at_once(models):
    cut(models / "short", 100)
    without(models / "part", SHARD.format(2))
    adapter(models / "lora")
    (models / "none").mkdir()
    recipe = linear("./short", "./part", "./lora", "./none", "./bse")
    said = refused(recipe)
    assert [line.split(": ")[0] for line in said] == [
        f"models[{i}] (line {i + 3})" for i in range(5)
    ]

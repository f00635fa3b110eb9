from __future__ import annotations

import io
import json

import pytest
import torch
from safetensors.torch import save

from mergeloom.checkpoint import fetch, fingerprint
from mergeloom.errors import CheckpointError
from mergeloom.types import ModelReference

from .fake_hub import COMMIT, FakeHub
from .quantized import layouts
from .support import good, opened, raw, read, refused

SIDE = {
    "config.json": b'{"architectures": ["Llama"], "hidden_size": 4}',
    "chat_template.jinja": b"{{ messages }}",
    "modeling.py": b"raise SystemExit",
    "vocab.txt": b"a",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"kept as it is",
    "modules.json": b'[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
}
OTHER = {
    "README.md": b"#",
    "LICENSE.txt": b"-",
    ".gitattributes": b"*",
    "pytorch_model.bin": b"not wanted",
    "onnx/model.onnx": b"not wanted",
    "onnx/config.json": b"{}",
    "original/consolidated.00.pth": b"not wanted",
    "consolidated.safetensors": b"not wanted",
    "training_args.bin": b"not wanted",
}
TENSORS = {f"layers.{n}.w": torch.full((3,), float(n)) for n in range(4)}


def sharded() -> dict[str, bytes]:
    """Two shards; the header of the second is longer than what is asked for at first."""
    names = list(TENSORS)
    one = {name: TENSORS[name] for name in names[:2]}
    two = {name: TENSORS[name] for name in names[2:]}
    index = {name: f"model-0000{1 + (name in two)}-of-00002.safetensors" for name in names}
    return {
        "model-00001-of-00002.safetensors": save(one),
        "model-00002-of-00002.safetensors": save(two, {"long": "x" * 150_000}),
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    server = FakeHub()
    server.repos["org/model"] = {**SIDE, **OTHER, **sharded()}
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    yield server
    server.close()


def test_headers_come_without_weights_and_only_needed_weights_come(hub, tmp_path, monkeypatch):
    checkpoint = good("org/model", cache_dir=tmp_path / "cache")
    assert checkpoint.side_files == tuple(sorted(SIDE))
    assert checkpoint.config["hidden_size"] == 4
    assert (checkpoint.revision, checkpoint.is_local) == (COMMIT, False)
    # The card for its licence.
    assert hub.downloaded() == {*SIDE, "model.safetensors.index.json", "README.md"}
    assert sum(line.startswith("RANGE") for line in hub.log) == 3
    for name, data in SIDE.items():
        assert (checkpoint.root / name).read_bytes() == data
    assert {v[2] for v in checkpoint.fetch.values()} == {n for n in sharded() if "-of-" in n}
    with pytest.raises(CheckpointError, match="cannot be read"):
        fingerprint(checkpoint)

    view = checkpoint.tensors["layers.3.w"]
    fetch(checkpoint, [*view.files, *view.files, tmp_path / "other"])
    assert hub.downloaded() - {*SIDE} == {
        "README.md",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    }
    assert raw(read(view)) == raw(TENSORS["layers.3.w"])

    # Again: nothing comes twice; and with the rest fetched, offline asks nobody.
    hub.log.clear()
    again = good("org/model", cache_dir=tmp_path / "cache")
    assert list(again.fetch) == [checkpoint.root / "model-00001-of-00002.safetensors"]
    assert again.tensors == checkpoint.tensors
    assert hub.downloaded() == set()
    fetch(again, again.fetch)
    hub.log.clear()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = good("org/model", cache_dir=tmp_path / "cache")
    assert (offline.tensors, offline.config) == (checkpoint.tensors, checkpoint.config)
    assert (offline.side_files, offline.revision) == (checkpoint.side_files, COMMIT)
    assert good(ModelReference("org/model", COMMIT), cache_dir=tmp_path / "cache").fetch == {}
    assert fingerprint(offline) == fingerprint(checkpoint)
    assert hub.log == []
    assert refused("else", cache_dir=tmp_path / "cache") == (
        f"else is neither a local path nor in the cache {tmp_path}/cache, and with "
        "HF_HUB_OFFLINE set nothing is downloaded. "
        "Unset HF_HUB_OFFLINE, or download the model first"
    )


def test_a_repository_of_pickles_is_downloaded(hub, tmp_path):
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    hub.repos["org/old"] = {"config.json": b"{}", "pytorch_model.bin": buffer.getvalue()}
    reference = ModelReference("org/old", "main", override_architecture="Mine")
    checkpoint = good(reference, cache_dir=tmp_path / "cache")
    assert raw(read(checkpoint.tensors["layers.1.w"])) == raw(TENSORS["layers.1.w"])
    assert checkpoint.fetch == {}
    assert checkpoint.config == {"architectures": ["Mine"]}


def test_without_a_connection_the_cache_is_used_with_a_warning(hub, tmp_path, monkeypatch):
    first = good("org/model", cache_dir=tmp_path / "cache")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    _, errors, _ = opened("org/model", cache_dir=tmp_path / "cache")
    assert len(errors) == 2
    assert errors[0].startswith("org/model: 2 of 2 shards are missing: model-00001-of-00002.safet")
    assert errors[1].startswith("the copy of org/model in the cache cannot be used without a conn")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    fetch(first, first.fetch)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    checkpoint, errors, warnings = opened("org/model", cache_dir=tmp_path / "cache")
    assert (checkpoint.tensors, errors) == (first.tensors, [])
    assert len(warnings) == 1
    assert "the copy of org/model in the cache is used" in warnings[0]
    assert refused("org/none", cache_dir=tmp_path / "cache").endswith(
        "). Check the name and the connection (HF_ENDPOINT, proxy)"
    )


def test_what_the_hub_refuses_is_said_in_one_line_with_the_next_step(hub, tmp_path):
    hub.repos["org/gated"] = {}
    hub.gated.add("org/gated")
    hub.repos["org/bad"] = {"model.safetensors": b"\xff" * 500}
    hub.repos["org/pointer"] = {
        "model.safetensors": b"version https://git-lfs.github.com/spec/v1\nsize 1\n"
    }
    hub.repos["me/lora"] = {
        "adapter_model.safetensors": b"x",
        "adapter_config.json": b'{"base_model_name_or_path": "org/model"}',
    }
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "modle").mkdir()
    for name, message in {
        "org/nope": "org/nope is neither a local path nor a model on the hub that you may see. "
        "Check the spelling; for a private model set HF_TOKEN or run huggingface-cli login",
        "org/modlee": "org/modlee is neither a local path nor a model on the hub that you may see. "
        "Nearest: org/modle",
        "org/gated": "org/gated is a gated model on the hub. Ask for access on its page, then set "
        "HF_TOKEN or run huggingface-cli login",
        "org/bad": "org/bad/model.safetensors is not a safetensors file: it would have a header "
        "of 18,446,744,073,709,551,615 bytes, and the most is 100,000,000. It is damaged: "
        "download it again",
        "org/pointer": "org/pointer/model.safetensors is a git-lfs pointer (50 bytes): run git "
        "lfs pull",
        "me/lora": "me/lora is a LoRA adapter of org/model, which is not supported yet in this "
        "version. Merge it into the model first (peft merge_and_unload)",
    }.items():
        _, errors, _ = opened(name, cache_dir=tmp_path / "cache")
        assert errors == [message]
    _, errors, _ = opened(ModelReference("org/model", "v9"), cache_dir=tmp_path / "cache")
    assert errors == ["org/model@v9: the hub has the model, but not this revision"]
    checkpoint = good("org/model", cache_dir=tmp_path / "cache")
    del hub.repos["org/model"]
    with pytest.raises(CheckpointError, match="org/model is neither a local path nor a model"):
        fetch(checkpoint, checkpoint.fetch)


@pytest.mark.parametrize("kind", ["fp8", "bitsandbytes"])
def test_quantized_models_are_understood_from_headers_where_those_say_enough(kind, hub, tmp_path):
    """The shapes of bitsandbytes' 4-bit weights are inside of the file, so that has to come."""
    if kind == "fp8":
        layer, meant = layouts.block_float8(20, 30)
    else:
        layer, meant = layouts.bitsandbytes4(20, 32, nested=True)
    config = json.dumps({"quantization_config": {"quant_method": kind}}).encode()
    weights = save({f"a.{name}": tensor for name, tensor in layer.items()})
    hub.repos["org/small"] = {"config.json": config, "model.safetensors": weights}
    checkpoint, errors, warnings = opened("org/small", cache_dir=tmp_path / "cache")
    assert checkpoint is not None
    assert errors == []
    assert len(warnings) == 1
    assert checkpoint.tensors["a.weight"].shape == tuple(meant.shape)
    assert ("model.safetensors" in " ".join(hub.downloaded())) is (kind == "bitsandbytes")
    fetch(checkpoint, checkpoint.tensors["a.weight"].files)
    assert torch.equal(read(checkpoint.tensors["a.weight"]), meant.flatten())

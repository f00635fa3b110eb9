"""Small models of known shapes, written to disk with the safetensors library itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def llama_names(layers: int, *, head: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a llama of hidden size 8, 2 heads, 16 rows of vocabulary."""
    yield "model.embed_tokens.weight", (16, 8)
    for i in range(layers):
        here = f"model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{here}.self_attn.{name}.weight", (8, 8)
        for name in ("gate_proj", "up_proj"):
            yield f"{here}.mlp.{name}.weight", (12, 8)
        yield f"{here}.mlp.down_proj.weight", (8, 12)
        yield f"{here}.input_layernorm.weight", (8,)
        yield f"{here}.post_attention_layernorm.weight", (8,)
    yield "model.norm.weight", (8,)
    if head:
        yield "lm_head.weight", (16, 8)


def llama_config(layers: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 16,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **more,
    }


def llama(
    layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32, *, head: bool = True
) -> Tensors:
    """A state dict of random numbers that differs with the seed."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=random).to(dtype)
        for name, shape in llama_names(layers, head=head)
    }


def save(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    shards: int = 1,
    files: Mapping[str, str] | None = None,
) -> Path:
    """A model folder: weights in one file or several, config.json, and any other files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder
    placed = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_files(got: Path, wanted: Path | Mapping[str, bytes]) -> None:
    """Equal names and equal bytes; says which files differ and not how."""
    ours, theirs = content(got), content(wanted) if isinstance(wanted, Path) else wanted
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []

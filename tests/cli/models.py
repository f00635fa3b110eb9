"""Tiny checkpoints as users have them: whole, odd, and broken in the ways they break."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, ROWS = 8, 16, 4, 12
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def weights(
    layers: int = LAYERS,
    hidden: int = HIDDEN,
    rows: int = ROWS,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """The tensors of a small Llama, in a fixed order and reproducible."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    found = {"model.embed_tokens.weight": made(rows, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        found[f"{layer}.input_layernorm.weight"] = made(hidden)
        for name in PROJECTIONS:
            found[f"{layer}.self_attn.{name}.weight"] = made(hidden, hidden)
        found[f"{layer}.mlp.down_proj.weight"] = made(hidden, INNER)
        found[f"{layer}.mlp.up_proj.weight"] = made(INNER, hidden)
    found["model.norm.weight"] = made(hidden)
    found["lm_head.weight"] = made(rows, hidden)
    return found


def config(layers: int = LAYERS, hidden: int = HIDDEN, rows: int = ROWS) -> dict[str, Any]:
    """The config.json that goes with :func:`weights`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": INNER,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def tokenizer(tokens: list[str]) -> dict[str, Any]:
    """A tokenizer.json whose vocabulary is ``tokens`` in the order of their ids."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []},
    }


def model(
    folder: Path,
    layers: int = LAYERS,
    hidden: int = HIDDEN,
    rows: int = ROWS,
    *,
    seed: int = 0,
    tokens: list[str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """A model folder with weights, config.json and, for ``tokens``, a tokenizer.

    ``changes`` go into config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(layers, hidden, rows, seed=seed), folder / "model.safetensors")
    found = config(layers, hidden, rows) | dict(changes or {})
    write_json(folder / "config.json", found)
    if tokens is not None:
        write_json(folder / "tokenizer.json", tokenizer(tokens))
    return folder


def sharded(folder: Path, shards: int = 3, *, seed: int = 0) -> Path:
    """The same model in several files with an index."""
    model(folder, seed=seed)
    (folder / "model.safetensors").unlink()
    tensors = weights(seed=seed)
    names = list(tensors)
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number::shards]
        save_file({name: tensors[name] for name in own}, folder / file)
        index |= dict.fromkeys(own, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# --- recipes ----------------------------------------------------------------------------------


def linear(*models: str, more: str = "") -> str:
    """A recipe that averages models; ``models[i]`` is on line i + 3."""
    lines = [f"  - {{model: {model}, parameters: {{weight: 0.5}}}}" for model in models]
    return "\n".join(["merge_method: linear", "models:", *lines, more])


def second(message: str) -> list[str]:
    """The one message about the second model of :func:`linear`."""
    return [f"models[1] (line 4): {message}"]


def method(name: str, *models: str, more: str = "") -> str:
    """A recipe without parameters; ``models[i]`` is on line i + 3."""
    return "\n".join([f"merge_method: {name}", "models:", *(f"  - {m}" for m in models), more])


def slices(name: str, *sources: str, more: str = "") -> str:
    """A recipe of slices with one source each; ``slices[i]`` is on line i + 3."""
    lines = [f"  - sources: [{{model: {s}}}]" for s in sources]
    return "\n".join([f"merge_method: {name}", "slices:", *lines, more])

"""A Llama forward pass in plain torch, so that the demo needs no transformers.

The weights are a mapping with the names a Hugging Face checkpoint uses; the functions here take
that mapping as an argument, so training (leaf tensors with gradients) and scoring (a file just
read) run the same code. tests/demo compares the logits with those of transformers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

Weights = Mapping[str, torch.Tensor]

# The number formats the demo's files can have, by their safetensors name.
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Config:
    """The numbers of a Llama that the forward pass needs, named as in ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Config:
        """Pick the fields out of a parsed ``config.json``, in the new or the old spelling."""
        rope = raw.get("rope_parameters") or {}
        return cls(
            **{name: raw[name] for name in cls.__dataclass_fields__ if name != "rope_theta"},
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
        )


@dataclass(frozen=True)
class Model:
    """A checkpoint in memory: the weights in float32, the config and the vocabulary."""

    config: Config
    weights: Weights
    vocabulary: Mapping[str, int]


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of one safetensors file, in its stored dtype.

    The format: 8 bytes of little-endian header length, the header as JSON, then the data.
    """
    raw = bytearray(path.read_bytes())  # a bytearray, because torch wants a writable buffer
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        data = torch.frombuffer(
            raw, dtype=dtype, count=(end - start) // dtype.itemsize, offset=8 + length + start
        )
        tensors[name] = data.view(entry["shape"])
    return tensors


def write_safetensors(path: Path, tensors: Weights) -> None:
    """Write tensors, in their own dtypes and in the mapping's order, as one safetensors file."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blocks, end = [], 0
    for name, tensor in tensors.items():
        # torch has no bytes() of a bfloat16 tensor, so look at the same memory as bytes.
        blocks.append(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        start, end = end, end + len(blocks[-1])
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    path.write_bytes(b"".join((struct.pack("<Q", len(text)), text, *blocks)))


def load(model_dir: Path) -> Model:
    """Load a single- or multi-file checkpoint directory of the demo's architecture."""
    config = Config.from_json(json.loads((model_dir / "config.json").read_text("utf-8")))
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text("utf-8"))
    weights = {
        name: tensor.float()
        for file in sorted(model_dir.glob("*.safetensors"))
        for name, tensor in read_safetensors(file).items()
    }
    return Model(config, weights, tokenizer["model"]["vocab"])


def _rotary(config: Config, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary position embedding, each (length, head_dim)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length).float(), config.rope_theta**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _attention(
    config: Config,
    w: Weights,
    prefix: str,
    x: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    batch, length, _ = x.shape

    def heads(name: str, count: int) -> torch.Tensor:
        y = functional.linear(x, w[f"{prefix}.{name}.weight"])
        return y.view(batch, length, count, config.head_dim).transpose(1, 2)

    query = _rotate(heads("q_proj", config.num_attention_heads), *rotary)
    key = _rotate(heads("k_proj", config.num_key_value_heads), *rotary)
    value = heads("v_proj", config.num_key_value_heads)
    # Grouped-query attention: each key/value head serves several query heads in a row.
    group = config.num_attention_heads // config.num_key_value_heads
    y = functional.scaled_dot_product_attention(
        query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), is_causal=True
    )  # (batch, heads, length, head_dim)
    return functional.linear(y.transpose(1, 2).flatten(2), w[f"{prefix}.o_proj.weight"])


def _mlp(w: Weights, prefix: str, x: torch.Tensor) -> torch.Tensor:
    gate = functional.silu(functional.linear(x, w[f"{prefix}.gate_proj.weight"]))
    up = functional.linear(x, w[f"{prefix}.up_proj.weight"])
    return functional.linear(gate * up, w[f"{prefix}.down_proj.weight"])


def forward(config: Config, w: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (batch, length, vocab_size) of ``tokens`` (batch, length), causal, without padding.

    Padding on the right is harmless: no earlier position sees it.
    """
    rotary = _rotary(config, tokens.shape[1])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.rms_norm(x, (config.hidden_size,), w[name], config.rms_norm_eps)

    x = functional.embedding(tokens, w["model.embed_tokens.weight"])
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        y = norm(x, f"{layer}.input_layernorm.weight")
        x = x + _attention(config, w, f"{layer}.self_attn", y, rotary)
        x = x + _mlp(w, f"{layer}.mlp", norm(x, f"{layer}.post_attention_layernorm.weight"))
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return functional.linear(norm(x, "model.norm.weight"), w[head])

"""GGUF files of tiny models, written by the gguf library, changed as llama.cpp changes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

HIDDEN, HEADS, KV_HEADS, WIDTH, LAYERS, ROWS, INNER = 64, 4, 2, 32, 2, 96, 96

Q = gguf.GGMLQuantizationType


def config(family: str) -> Any:
    """transformers' config of a tiny model."""
    import transformers

    name = {"gemma3": "gemma3_text"}.get(family, family)
    sizes = {
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": ROWS,
        "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    more: dict[str, Any] = {
        "llama": {"head_dim": WIDTH, "rms_norm_eps": 1e-5, "rope_theta": 5e5},
        "qwen2": {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True},
        "qwen3": {"head_dim": 128, "rope_theta": 1e6},
        "gemma2": {"head_dim": WIDTH, "query_pre_attn_scalar": WIDTH, "sliding_window": 16},
        "gemma3": {"head_dim": WIDTH, "query_pre_attn_scalar": WIDTH, "sliding_window": 16},
        "phi3": {"rms_norm_eps": 1e-5, "sliding_window": 64},
        "starcoder2": {"use_bias": True, "sliding_window": None, "rope_theta": 1e5},
    }[family]
    return transformers.AutoConfig.for_model(name, **sizes, **more)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def gguf_name(family: str, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{kind}"
    number, inside = stem.removeprefix("model.layers.").split(".", 1)
    leaf = NAMES[inside]
    if family.startswith("gemma") and inside == "post_attention_layernorm":
        leaf = "post_attention_norm"
    return f"blk.{number}.{leaf}.{kind}"


def changed(family: str, name: str, weights: torch.Tensor) -> torch.Tensor:
    """What llama.cpp's converter does to a tensor."""
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return weights + 1
    if family == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = HEADS if ".q_proj." in name else KV_HEADS
        halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        return halves.transpose(1, 2).reshape(weights.shape)
    return weights


def write(
    path: Path,
    family: str,
    state: Mapping[str, torch.Tensor],
    kinds: Mapping[str, Q] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tokens: list[str] | None = None,
    factors: torch.Tensor | None = None,
) -> Path:
    """A file of one model; ``kinds`` by the end of transformers' names, F32 without."""
    settings = config(family).to_dict()
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    theta = settings["rope_parameters"]
    theta = theta.get("full_attention", theta)["rope_theta"]
    writer.add_rope_freq_base(theta)
    if "rms_norm_eps" in settings:
        writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    if "norm_epsilon" in settings:
        writer.add_layer_norm_eps(settings["norm_epsilon"])
    if settings.get("sliding_window"):
        writer.add_sliding_window(settings["sliding_window"])
    if family == "llama":
        writer.add_rope_dimension_count(WIDTH)
    elif settings.get("head_dim"):
        writer.add_key_length(settings["head_dim"])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(settings["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(settings["final_logit_softcapping"])
    writer.add_array("tokenizer.ggml.tokens", tokens or [f"t{i}" for i in range(ROWS)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for key, value in (metadata or {}).items():
        add = writer.add_array if isinstance(value, list) else writer.add_string
        add(key, value)
    for name, weights in state.items():
        data = changed(family, name, weights.float()).contiguous().numpy()
        kind = next((k for end, k in (kinds or {}).items() if name.endswith(end)), Q.F32)
        stored = gguf.quantize(data, kind)
        raw_shape = None if kind in (Q.F32, Q.F16) else stored.shape
        writer.add_tensor(gguf_name(family, name), stored, raw_shape, kind)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(weights: torch.Tensor, kind: Q) -> torch.Tensor:
    """Weights as they are after being quantized."""
    data = np.ascontiguousarray(weights.float().numpy())
    return torch.from_numpy(gguf.dequantize(gguf.quantize(data, kind), kind))

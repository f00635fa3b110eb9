"""What the architectures of GGUF files are called in transformers: names of tensors and config.

A row of data for each family, checked against transformers' own reading of such files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergeloom.checkpoint.gguf_file.header import Header

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMED = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Args:
        model_type, class_name: transformers'.
        layer: names inside a layer, without ``.weight`` and ``.bias``.
        interleaved: whether the halves of rotary pairs are interleaved in the file.
        norm_shift: what to add to norms.
        config: further keys of config.json from metadata keys, without the architecture's prefix.
        more: keys that need a computation.
    """

    model_type: str
    class_name: str
    layer: Mapping[str, str]
    interleaved: bool = False
    norm_shift: float = 0.0
    config: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Header, str], Mapping[str, Any]] = lambda _header, _prefix: {}


def _llama(header: Header, prefix: str) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in header.tensors
    size, heads = _whole(header, f"{prefix}.embedding_length"), _whole(
        header, f"{prefix}.attention.head_count")  # fmt: skip
    wide = header.number(f"{prefix}.attention.key_length")
    wide = wide or header.number(f"{prefix}.rope.dimension_count") or size // max(1, heads)
    return {"head_dim": wide, "attention_bias": biased, "mlp_bias": False, "hidden_act": "silu"}


def _gemma(large: int) -> Callable[[Header, str], Mapping[str, Any]]:
    """Gemma scales queries by a head's width; its largest size by a head's share of the model."""

    def more(header: Header, prefix: str) -> dict[str, Any]:
        wide = _whole(header, f"{prefix}.attention.key_length")
        if header.number(f"{prefix}.block_count") == large:
            heads = max(1, _whole(header, f"{prefix}.attention.head_count"))
            return {"query_pre_attn_scalar": _whole(header, f"{prefix}.embedding_length") // heads}
        return {"query_pre_attn_scalar": wide} if wide else {}

    return more


def _starcoder2(header: Header, _prefix: str) -> dict[str, Any]:
    return {"use_bias": "blk.0.attn_q.bias" in header.tensors}


_HEAD = {"attention.key_length": "head_dim"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _ATTENTION | _GATED, True, more=_llama),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _ATTENTION | _GATED),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _ATTENTION | _GATED | _NORMED, config=_HEAD),
    "gemma2": Family(
        "gemma2", "Gemma2ForCausalLM", _ATTENTION | _GATED | _FOUR_NORMS, False, -1.0,
        _HEAD | _WINDOW | _CAPS, _gemma(46),
    ),
    "gemma3": Family(
        "gemma3_text", "Gemma3ForCausalLM", _ATTENTION | _GATED | _NORMED | _FOUR_NORMS, False,
        -1.0, _HEAD | _WINDOW, _gemma(62),
    ),
    "phi3": Family("phi3", "Phi3ForCausalLM", _FUSED, config=_WINDOW),
    "starcoder2": Family(
        "starcoder2", "Starcoder2ForCausalLM",
        _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        config=_WINDOW | {"attention.layer_norm_epsilon": "norm_epsilon"}, more=_starcoder2,
    ),
}  # fmt: skip

_CONFIG = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_NEEDED = ("block_count", "embedding_length", "attention.head_count")
_LAYER = re.compile(r"blk\.(\d{1,9})\.(.+)\.(weight|bias)")
NOT_WEIGHTS = ("rope_freqs.weight",)
"""Factors of the rotary frequencies: they belong into config.json."""


def _whole(header: Header, key: str) -> int:
    value = header.number(key)
    return int(value) if value is not None else 0


def lacking(header: Header, prefix: str) -> list[str]:
    """Metadata without which a file of any family cannot be understood."""
    return [f"{prefix}.{key}" for key in _NEEDED if _whole(header, f"{prefix}.{key}") < 1]


def model_name(family: Family, name: str) -> str | None:
    """transformers' name of a tensor, None if the family has none like it."""
    if match := _LAYER.fullmatch(name):
        inside = family.layer.get(match[2])
        return f"model.layers.{int(match[1])}.{inside}.{match[3]}" if inside else None
    stem, _, kind = name.rpartition(".")
    return f"{TOP[stem]}.{kind}" if stem in TOP and kind in ("weight", "bias") else None


def interleaved_heads(family: Family, header: Header, name: str) -> int:
    """How many heads' rows of this tensor are interleaved; 0 for none."""
    match = _LAYER.fullmatch(name)
    if not family.interleaved or not match or match[2] not in ("attn_q", "attn_k"):
        return 0
    prefix = header.text("general.architecture")
    heads = _whole(header, f"{prefix}.attention.head_count")
    if match[2] == "attn_q":
        return heads
    return _whole(header, f"{prefix}.attention.head_count_kv") or heads


def config_of(
    family: Family, header: Header, dtype: str, factors: Sequence[float]
) -> dict[str, Any]:
    """config.json from the metadata.

    Args:
        family: of the file.
        header: its metadata and tensors.
        dtype: torch's name of the dtype of the weights.
        factors: content of ``rope_freqs.weight``, empty without one.
    """
    prefix = header.text("general.architecture")
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    for key, name in {**_CONFIG, **family.config}.items():
        value = header.metadata.get(f"{prefix}.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            config[name] = _short(value)
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        config["vocab_size"] = embedding.shape[0]
    for token in ("bos", "eos", "padding"):
        value = header.number(f"tokenizer.ggml.{token}_token_id")
        if isinstance(value, int):
            config[f"{token.removesuffix('ding')}_token_id"] = value
    config.update(family.more(header, prefix))
    if scaling := _scaling(header, prefix, config, factors):
        config["rope_scaling"] = scaling
    return config


def _short(value: int | float) -> int | float:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    if isinstance(value, int):
        return value
    import struct

    for digits in range(1, 10):
        shorter = float(f"{value:.{digits}g}")
        if struct.pack("<f", shorter) == struct.pack("<f", value):
            return shorter
    return value


def _scaling(
    header: Header, prefix: str, config: Mapping[str, Any], factors: Sequence[float]
) -> dict[str, Any] | None:
    """``rope_scaling``: what the metadata states, or what the factors follow from."""
    kind = header.text(f"{prefix}.rope.scaling.type")
    factor = header.number(f"{prefix}.rope.scaling.factor")
    if kind in ("linear", "yarn") and factor:
        found: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
        original = header.number(f"{prefix}.rope.scaling.original_context_length")
        return found | ({"original_max_position_embeddings": original} if original else {})
    if not factors:
        return None
    stated = {
        "rope_type": "llama3",
        "factor": float(_short(max(factors))),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    made = llama3_factors(stated, config.get("rope_theta", 10000.0), 2 * len(factors))
    close = all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(made, factors, strict=True))
    return stated if close else None


def llama3_factors(scaling: Mapping[str, Any], theta: float, width: int) -> list[float]:
    """What Llama 3.1 divides each rotary frequency by."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    found = []
    for place in range(0, width, 2):
        turns = context / (2 * math.pi * theta ** (place / width))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return found

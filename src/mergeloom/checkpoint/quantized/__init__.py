"""Quantized checkpoints: stored codes and their companions become views of numbers.

One file for each family of formats. A format that is not known is refused by name: codes must
never be averaged as if they were weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.checkpoint.quantized.pool import Pool, own_dtype, quantization_settings
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.weights import in_natural_order
from mergeloom.errors import listing
from mergeloom.types import View

__all__ = ["dequantized"]

_PLAIN = frozenset("F64 F32 F16 BF16 I64 BOOL C64".split())
"""The dtypes of a checkpoint that is not quantized; every quantized format has others too."""

METHODS = frozenset(
    """awq bitsandbytes bitsandbytes_4bit bitsandbytes_8bit compressed-tensors compressed_tensors
    fbgemm_fp8 fp8 gptq modelopt mxfp4 mxfp8 nvfp4""".split()
)
"""config.json's names of the quantizations that are read; every other one is refused."""

_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose layers are stored transposed; quantizers turn them, unlike their originals."""

_RUNTIME = (
    *(".input_scale", ".input_zero_point", ".input_global_scale", ".input_scale_ub", ".k_scale"),
    *(".v_scale", ".q_scale", ".output_scale", "activation_scale", "activation_scale_inv"),
    *(".weight_format", "input_scale_inv", ".pre_quant_scale"),
)
"""Companions for activations and caches at run time, of no use to float weights."""

_CODES = (
    *(".weight", "_packed", "_blocks", ".codes", ".Qidxs", ".W_q", ".indices", "_bitmask"),
    *(".compressed", ".weight_q", "_quantized"),
)
"""Names of tensors that hold codes where they are not floats."""

_COMPANIONS = (".qweight", ".qzeros", ".absmax", ".SCB", ".quant_map", "_scale_inv")
"""Names that only quantized checkpoints have."""


def dequantized(
    tensors: Mapping[str, View], config: Mapping[str, Any] | None, shown: str, report: Report
) -> dict[str, View] | None:
    """The tensors of a checkpoint with views that dequantize in place of codes.

    Args:
        tensors: as stored.
        config: config.json; says how the weights are quantized and what dtype they were.
        shown: how messages call the checkpoint.
        report: receives mistakes, and as a warning what is dequantized.

    Returns:
        Names → views in natural order, without the companions; None after a mistake.
    """
    config = config or {}
    settings = quantization_settings(config)
    plain = all(
        view.dtype in _PLAIN and not name.endswith(_COMPANIONS) for name, view in tensors.items()
    )
    if plain and not settings and "quantization" not in config:
        return dict(tensors)
    if mistake := _refusal(settings, config):
        report.error(
            f"{shown} is quantized ({mistake}), which cannot be dequantized here",
            "Use the original weights, or dequantize it first with the library that made it",
        )
        return None
    from mergeloom.checkpoint.quantized.bitsandbytes import take_bitsandbytes
    from mergeloom.checkpoint.quantized.integers import take_gptq, take_packed
    from mergeloom.checkpoint.quantized.mxfp4 import take_mxfp4
    from mergeloom.checkpoint.quantized.scaled import take_bare_float8, take_scaled

    errors = len(report.problems.errors)
    model_type = str(config.get("model_type", ""))
    pool = Pool(dict(tensors), settings, own_dtype(config), model_type, shown, report)
    for take in (take_bitsandbytes, take_mxfp4, take_packed, take_gptq, take_scaled,
                 take_bare_float8):  # fmt: skip
        take(pool)
    _check_rest(pool)
    if len(report.problems.errors) > errors:
        return None
    if not pool.made:
        return dict(tensors)
    report.warn(f"{shown} is {', '.join(pool.kinds)}; dequantizing it while reading")
    for name in [n for n in pool.left if n.endswith(_RUNTIME)]:
        pool.take(name)
    return in_natural_order({**pool.left, **pool.made})


def _refusal(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The name of a quantization that is not read, or an empty text."""
    if isinstance(config.get("quantization"), Mapping) and "bits" in config["quantization"]:
        return "MLX"
    method = settings.get("quant_method")
    if not settings or method is None:
        return ""  # told by the names of the tensors, if they are quantized at all
    name = str(method).lower()
    if name not in METHODS:
        return name[:60]
    kind = settings.get("checkpoint_format" if name == "gptq" else "version", "gemm")
    if name == "awq" and str(kind).lower() != "gemm":
        return f"awq {str(kind)[:40]}"
    if name == "gptq" and kind not in (None, "gemm", "gptq", "gptq_v2"):
        return f"gptq {str(kind)[:40]}"
    sparsity = settings.get("sparsity_config")
    kinds = [settings.get("format"), sparsity.get("format") if isinstance(sparsity, dict) else ""]
    kind = " ".join(str(kind) for kind in kinds if kind)
    if name.startswith("compressed") and ("marlin" in kind or "sparse" in kind or "mxfp6" in kind):
        return f"compressed-tensors {kind[:40]}"
    return ""


def _check_rest(pool: Pool) -> None:
    """Codes that no family has taken, and weights whose orientation is not known."""
    codes = [
        name
        for name, view in pool.left.items()
        if name.endswith(_COMPANIONS)
        or (
            view.dtype in ("U8", "I8", "I16", "I32", "U32", "F8_E8M0")
            and name.endswith(_CODES)
            and (len(view.shape) > 1 or not name.endswith(".weight"))
        )
    ]
    if codes:
        pool.report.error(
            f"{pool.shown} has parts of quantized weights in a format that is not known: "
            f"{listing(codes, 3)}",
            "Use the original weights, or dequantize it first with the library that made it",
        )
    turned = pool.model_type in _TRANSPOSED and any(
        not kind.startswith("FP8") for kind in pool.kinds
    )
    if turned:
        pool.report.error(
            f"{pool.shown} is a {pool.model_type} model, whose quantized layers "
            f"({', '.join(pool.kinds)}) are stored transposed",
            "Use the original weights",
        )

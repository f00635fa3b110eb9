"""Every format reads back as the numbers it means, whole and in any range."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from mergeloom.types import numel

from ..support import opened, read
from . import layouts

CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def groups(bits: int, size: int | None) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": size}
    return CT | {"config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}}}


FORMATS: dict[str, tuple[layouts.Layer, dict[str, Any], str]] = {
    "block FP8": (layouts.block_float8(300, 200), {"quant_method": "fp8"}, "block FP8"),
    "block FP8, whole blocks": (
        layouts.block_float8(256, 128), {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "block FP8"),
    "channel FP8": (
        layouts.channel_float8(30, 50), {"quant_method": "fbgemm_fp8"},
        "FP8 with a scale for each channel"),
    "tensor FP8": (layouts.tensor_float8(30, 50), CT, "FP8 with a scale for each tensor"),
    "ComfyUI's FP8": (layouts.comfy_float8(9, 50), {}, "FP8 with a scale for each tensor"),
    "experts in FP8": (layouts.expert_float8(3, 20, 12), {}, "block FP8"),
    "MXFP8": (layouts.exponent_float8(12, 96), {"quant_method": "mxfp8"}, "block FP8"),
    "NVFP4": (layouts.float4(12, 64), CT, "block FP4"),
    "NVFP4 of ModelOpt": (
        layouts.modelopt_float4(12, 64), {"quant_method": "modelopt"}, "block FP4"),
    "INT8 in groups": (layouts.int8(12, 64, 16), CT, "block INT8"),
    "INT8 by channel": (layouts.int8(12, 60, 60), CT, "INT8 with a scale for each channel"),
    "INT4": (layouts.packed_integers(10, 64, 4, 32), groups(4, 32), "compressed-tensors INT4"),
    "INT4 by channel": (
        layouts.packed_integers(10, 64, 4, 64), groups(4, None), "compressed-tensors INT4"),
    "INT4 with zeros": (
        layouts.packed_integers(24, 64, 4, 16, zeros=True), groups(4, 16),
        "compressed-tensors INT4"),
    "INT8 packed, shuffled": (
        layouts.packed_integers(8, 64, 8, 16, zeros=True, shuffled=True), groups(8, 16),
        "compressed-tensors INT8"),
    "INT2": (layouts.packed_integers(8, 64, 2, 16), groups(2, 16), "compressed-tensors INT2"),
    **{
        f"GPTQ {bits} bits": (
            layouts.gptq(64, 96, bits, 32), {"quant_method": "gptq", "bits": bits},
            f"GPTQ {bits}-bit")
        for bits in (2, 3, 4, 8)
    },
    "GPTQ v2": (
        layouts.gptq(64, 96, 4, 32, version=2),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, "GPTQ 4-bit"),
    "AWQ": (layouts.awq(40, 64, 32), {"quant_method": "awq", "group_size": 32}, "AWQ 4-bit"),
    "bitsandbytes 8": (
        layouts.bitsandbytes8(12, 31), {"quant_method": "bitsandbytes"}, "bitsandbytes 8-bit"),
    "bitsandbytes 4": (
        layouts.bitsandbytes4(12, 30, nested=False), {}, "bitsandbytes 4-bit (nf4)"),
    "bitsandbytes 4, nested": (
        layouts.bitsandbytes4(300, 64, nested=True), {}, "bitsandbytes 4-bit (nf4)"),
    "bitsandbytes 4 in bfloat16": (
        layouts.bitsandbytes4(8, 30, nested=True, storage=torch.bfloat16), {},
        "bitsandbytes 4-bit (nf4)"),
    "MXFP4": (layouts.mxfp4(3, 20, 2), {"quant_method": "mxfp4"}, "MXFP4"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMATS)
def test_codes_read_as_the_numbers_they_mean(case, model, monkeypatch):
    (layer, meant), settings, kind = FORMATS[case]
    monkeypatch.setattr(
        "mergeloom.checkpoint.quantized.blocks.PIECE", 200
    )  # so that these tensors have many pieces
    config = {"dtype": "float16", "quantization_config": settings} if settings else {}
    tensors = {"layer.norm": torch.ones(3)} | {f"layer.{n}": t for n, t in layer.items()}
    if case == "ComfyUI's FP8":
        tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    path = model("x", tensors, config)
    checkpoint, errors, warnings = opened(path)
    assert errors == []
    assert checkpoint is not None
    assert warnings == [f"{path} is {kind}; dequantizing it while reading"]
    (name,) = set(checkpoint.tensors) - {"layer.norm"}
    view = checkpoint.tensors[name]
    assert name in ("layer.weight", "layer.gate_up_proj")
    assert (view.dtype, view.shape) == ("F32", tuple(meant.shape))
    assert view.saved_dtype == ("F16" if settings else "BF16")
    assert {path.name for path in view.files} == {"model.safetensors"}
    close = {"rtol": 0, "atol": 0} if case != "bitsandbytes 8" else {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(read(view), meant.flatten().float(), **close)
    dice, size = random.Random(0), numel(view.shape)
    for _ in range(20):
        start, stop = sorted(dice.randint(0, size) for _ in range(2))
        view.prefetch(start, stop)
        torch.testing.assert_close(
            read(view, start, stop), meant.flatten()[start:stop].float(), **close
        )


def test_transformers_reads_the_same_from_mxfp4_and_block_float8(model):
    """Its own functions, on the tensors of the files above."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    layer, _ = layouts.mxfp4(3, 20, 2)
    checkpoint = opened(model("a", layer))[0]
    theirs = convert_moe_packed_tensors(
        layer["gate_up_proj_blocks"], layer["gate_up_proj_scales"], dtype=torch.float32
    )
    assert checkpoint is not None
    view = checkpoint.tensors["gate_up_proj"]
    assert torch.equal(read(view).view(view.shape), theirs)
    layer, _ = layouts.block_float8(256, 128)
    checkpoint = opened(model("b", layer))[0]
    theirs = Fp8Dequantize(None)._dequantize_one(layer["weight"], layer["weight_scale_inv"])
    assert checkpoint is not None
    assert torch.equal(read(checkpoint.tensors["weight"]).view(256, 128), theirs)

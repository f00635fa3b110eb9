"""Weights quantized by the plain formula and stored as each format stores them.

Every function gives (tensors of one layer by name, the numbers they mean). The numbers are made
element by element or with whole-tensor torch expressions, sharing nothing with the product.
"""

from __future__ import annotations

import json

import torch

Layer = tuple[dict[str, torch.Tensor], torch.Tensor]

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NF4 = torch.linspace(-1, 1, 16) ** 3


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block_float8(rows: int, columns: int, name: str = "weight", scale: str = "_scale_inv") -> Layer:
    weights = torch.randn(rows, columns, generator=random())
    codes, scales = torch.empty(rows, columns), torch.empty(-(-rows // 128), -(-columns // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            here = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = weights[here].abs().max() / 448
            codes[here] = weights[here] / scales[i, j]
    small = codes.to(torch.float8_e4m3fn)
    meant = torch.tensor(
        [[small[i, j].item() * scales[i // 128, j // 128].item() for j in range(columns)]
         for i in range(rows)]
    )  # fmt: skip
    return {name: small, name + scale: scales}, meant


def channel_float8(rows: int, columns: int) -> Layer:
    weights = torch.randn(rows, columns, generator=random())
    scale = weights.abs().amax(1, keepdim=True) / 448
    codes = (weights / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def tensor_float8(rows: int, columns: int) -> Layer:
    codes = torch.randn(rows, columns, generator=random()).to(torch.float8_e4m3fn)
    scale = torch.tensor(0.037)
    return {"weight": codes, "weight_scale": scale, "input_scale": scale + 1}, codes.float() * scale


def comfy_float8(rows: int, columns: int) -> Layer:
    codes = torch.randn(rows, columns, generator=random()).to(torch.float8_e4m3fn)
    scale = torch.tensor([0.25])
    return {"weight": codes, "scale_weight": scale}, codes.float() * 0.25


def expert_float8(experts: int, rows: int, columns: int) -> Layer:
    """fbgemm's fused experts: (experts, inputs, outputs) with a scale for each output."""
    codes = torch.randn(experts, rows, columns, generator=random()).to(torch.float8_e4m3fn)
    scale = torch.rand(experts, 1, columns, generator=random(1))
    return {"gate_up_proj": codes, "gate_up_proj_scale": scale}, codes.float() * scale


def exponent_float8(rows: int, columns: int) -> Layer:
    """MXFP8: a power of two for each 32 weights, as a byte."""
    codes = torch.randn(rows, columns, generator=random()).to(torch.float8_e4m3fn)
    scale = torch.randint(100, 140, (rows, columns // 32), generator=random(1), dtype=torch.uint8)
    meant = codes.float() * torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    return {"weight": codes, "weight_scale": scale}, meant


def float4(rows: int, columns: int) -> Layer:
    """NVFP4 of compressed-tensors: 16 weights share an FP8 scale, all of them a divisor."""
    codes = torch.randint(0, 16, (rows, columns), generator=random())
    scale = torch.rand(rows, columns // 16, generator=random(1)).mul(400).to(torch.float8_e4m3fn)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    whole = torch.tensor([700.0])
    meant = FP4[codes] * (scale.float() / whole).repeat_interleave(16, 1)
    return {
        "weight_packed": packed, "weight_scale": scale, "weight_global_scale": whole,
    }, meant  # fmt: skip


def modelopt_float4(rows: int, columns: int) -> Layer:
    """NVFP4 of ModelOpt: the same, and the number for all is a factor."""
    layer, _ = float4(rows, columns)
    codes = torch.randint(0, 16, (rows, columns), generator=random())  # the very same
    whole = torch.tensor(0.0013)
    scale = layer["weight_scale"]
    meant = FP4[codes] * (scale.float() * whole).repeat_interleave(16, 1)
    return {
        "weight": layer["weight_packed"], "weight_scale": scale, "weight_scale_2": whole,
    }, meant  # fmt: skip


def int8(rows: int, columns: int, group: int) -> Layer:
    codes = torch.randint(-128, 128, (rows, columns), generator=random())
    scale = torch.rand(rows, columns // group, generator=random(1))
    zero = torch.randint(-20, 20, scale.shape, generator=random(2))
    meant = (codes - zero.repeat_interleave(group, 1)) * scale.repeat_interleave(group, 1)
    return {
        "weight": codes.to(torch.int8), "weight_scale": scale,
        "weight_zero_point": zero.to(torch.int8),
    }, meant  # fmt: skip


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers (rows, n) → int32 words (rows, n·bits/32), one endless string of bits."""
    rows = []
    for row in codes.tolist():
        string = sum(code << (bits * place) for place, code in enumerate(row))
        words = [(string >> (32 * i)) & 0xFFFFFFFF for i in range(len(row) * bits // 32)]
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def packed_integers(
    rows: int, columns: int, bits: int, group: int, *, zeros: bool = False, shuffled: bool = False
) -> Layer:
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=random())
    scale = torch.rand(rows, columns // group, generator=random(1)).to(torch.bfloat16)
    zero = torch.full_like(scale, 1 << (bits - 1), dtype=torch.int64)
    groups = torch.arange(columns) // group
    layer = {
        "weight_packed": pack(codes, bits), "weight_scale": scale,
        "weight_shape": torch.tensor([rows, columns]),
    }  # fmt: skip
    if zeros:
        zero = torch.randint(0, 1 << bits, scale.shape, generator=random(2))
        layer["weight_zero_point"] = pack(zero.t(), bits).t().contiguous()
    if shuffled:
        groups = groups[torch.randperm(columns, generator=random(3))]
        layer["weight_g_idx"] = groups.to(torch.int32)
    return layer, (codes - zero[:, groups]) * scale.float()[:, groups]


def gptq(rows: int, columns: int, bits: int, group: int, *, version: int = 1) -> Layer:
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=random())
    scale = torch.rand(columns // group, rows, generator=random(1)).to(torch.float16)
    zero = torch.randint(0, 1 << bits, (columns // group, rows), generator=random(2))
    groups = (torch.arange(columns) // group)[torch.randperm(columns, generator=random(3))]
    stored = (zero - 1) % (1 << bits) if version == 1 else zero
    return {
        "qweight": pack(codes, bits).t().contiguous(), "qzeros": pack(stored, bits),
        "scales": scale, "g_idx": groups.to(torch.int32),
    }, (codes - zero.t()[:, groups]) * scale.float().t()[:, groups]  # fmt: skip


def awq(rows: int, columns: int, group: int) -> Layer:
    codes = torch.randint(0, 16, (columns, rows), generator=random())
    zero = torch.randint(0, 16, (columns // group, rows), generator=random(2))
    scale = torch.rand(columns // group, rows, generator=random(1)).to(torch.float16)

    def interleaved(values: torch.Tensor) -> torch.Tensor:
        moved = values.reshape(-1, values.shape[1] // 8, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return pack(moved.reshape(values.shape), 4)

    meant = (codes - zero.repeat_interleave(group, 0)) * scale.float().repeat_interleave(group, 0)
    return {
        "qweight": interleaved(codes), "qzeros": interleaved(zero), "scales": scale,
    }, meant.t().contiguous()  # fmt: skip


def bitsandbytes8(rows: int, columns: int) -> Layer:
    codes = torch.randint(-127, 128, (rows, columns), generator=random()).to(torch.int8)
    largest = torch.rand(rows, generator=random(1))
    return {
        "weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8),
    }, codes * largest[:, None] / 127  # fmt: skip


def bitsandbytes4(
    rows: int, columns: int, *, nested: bool, storage: torch.dtype = torch.uint8
) -> Layer:
    codes = torch.randint(0, 16, (rows * columns,), generator=random())
    blocks = -(-rows * columns // 64)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)
    layer = {"weight": packed.view(storage)[:, None], "weight.quant_map": NF4.clone()}
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.125}
        inner = torch.randint(0, 256, (blocks,), generator=random(1), dtype=torch.uint8)
        table, outer = torch.linspace(-1, 1, 256), torch.rand(-(-blocks // 256))
        magnitude = table[inner.long()] * outer.repeat_interleave(256)[:blocks] + 0.125
        layer |= {
            "weight.absmax": inner, "weight.nested_absmax": outer, "weight.nested_quant_map": table,
        }  # fmt: skip
    else:
        magnitude = torch.rand(blocks, generator=random(1))
        layer["weight.absmax"] = magnitude
    text = json.dumps(state).encode()
    layer["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    meant = NF4[codes] * magnitude.repeat_interleave(64)[: rows * columns]
    return layer, meant.view(rows, columns)


def mxfp4(experts: int, outputs: int, blocks: int) -> Layer:
    codes = torch.randint(0, 16, (experts, outputs, blocks, 32), generator=random())
    scale = torch.randint(110, 135, (experts, outputs, blocks), generator=random(1))
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    meant = FP4[codes] * torch.exp2(scale.float() - 127)[..., None]
    return {
        "gate_up_proj_blocks": packed, "gate_up_proj_scales": scale.to(torch.uint8),
    }, meant.flatten(2).transpose(1, 2).contiguous()  # fmt: skip

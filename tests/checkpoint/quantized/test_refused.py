"""What is told about quantized checkpoints that are damaged or of a kind that is not read."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from ..support import opened
from . import layouts

Layer = dict[str, torch.Tensor]
DAMAGED = "It is damaged or stored in a way that is not known here: use the original weights"
UNKNOWN = "Use the original weights, or dequantize it first with the library that made it"


def state(**changes: object) -> Callable[[Layer], Layer]:
    """A layer of bitsandbytes with changed JSON."""

    def change(layer: Layer) -> Layer:
        key = "weight.quant_state.bitsandbytes__nf4"
        said = json.loads(bytes(layer[key].tolist())) | changes
        text = json.dumps(said).encode()
        return layer | {key: torch.tensor(list(text), dtype=torch.uint8)}

    return change


def without(name: str) -> Callable[[Layer], Layer]:
    return lambda layer: {n: t for n, t in layer.items() if n != name}


def cut(name: str) -> Callable[[Layer], Layer]:
    return lambda layer: layer | {name: layer[name][:-1].contiguous()}


NF4 = layouts.bitsandbytes4(8, 32, nested=False)[0]
GPTQ = layouts.gptq(64, 96, 4, 32)[0]
FP8 = layouts.channel_float8(6, 10)[0]
FP8_CONFIG = {"quant_method": "fp8"}
INT4 = layouts.packed_integers(10, 64, 4, 32)[0]
INT4_CONFIG = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 3, "group_size": 32}}},
}
FILE = "in model.safetensors"
PARTS = "has parts of quantized weights in a format that is not known: "
MISTAKES: dict[str, tuple[Layer, dict[str, object], str]] = {
    "no scale": (without("weight_scale")(FP8), FP8_CONFIG,
                 f"tensor a.weight {FILE} is FP8 and no scale for it is stored"),
    "scale of other weights": (
        cut("weight_scale")(FP8), FP8_CONFIG,
        f"tensor a.weight_scale {FILE} of shape [5, 1] does not fit weights of shape [6, 10]"),
    "no magnitudes": (without("weight.absmax")(NF4), {},
                      "tensor a.weight.absmax is missing; shape [4] is needed"),
    "fewer magnitudes": (cut("weight.absmax")(NF4), {},
                         f"tensor a.weight.absmax {FILE} has shape [3], not [4]"),
    "codes of another shape": (
        state(shape=[8, 34])(NF4), {},
        f"tensor a.weight {FILE} does not hold the 272 codes of 4 bits that "
        "a.weight.quant_state.bitsandbytes__nf4 states"),
    "impossible shape": (
        state(shape=[1 << 40, 1 << 40])(NF4), {},
        f"tensor a.weight.quant_state.bitsandbytes__nf4 {FILE} has no possible shape"),
    "endless magnitudes": (
        state(nested_offset=float("inf"))(NF4), {},
        f"tensor a.weight.quant_state.bitsandbytes__nf4 {FILE} has no possible shape"),
    "a state that is not JSON": (
        NF4 | {"weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}, {},
        f"tensor a.weight.quant_state.bitsandbytes__nf4 {FILE} holds no JSON"),
    "a long state": (
        NF4 | {"weight.quant_state.bitsandbytes__nf4": torch.zeros(70_000, dtype=torch.uint8)}, {},
        f"tensor a.weight.quant_state.bitsandbytes__nf4 {FILE} is longer than 65,536 bytes"),
    "GPTQ without zeros": (without("qzeros")(GPTQ), {"quant_method": "gptq", "bits": 4},
                           "tensor a.qzeros is missing; shape [3, 8] is needed"),
    "GPTQ with other scales": (
        cut("scales")(GPTQ), {"quant_method": "gptq", "bits": 4},
        f"tensor a.qzeros {FILE} has shape [3, 8], not [2, 8]"),
    "bits that do not fit": (
        INT4, INT4_CONFIG,
        f"tensor a.weight_packed {FILE} has 8 words a row and 2 groups, which fits none of the 3 "
        "bits that config.json states"),
    "codes of something": ({"weight": torch.zeros(4, 4, dtype=torch.uint8)}, {},
                           f"{PARTS}a.weight"),
    "a companion of nothing": ({"weight": torch.ones(4, 4), "weight.absmax": torch.ones(1)}, {},
                               f"{PARTS}a.weight.absmax"),
    **{
        name: ({"weight": torch.ones(4, 4)}, settings,
               f"is quantized ({name}), which cannot be dequantized here")
        for name, settings in {
            "aqlm": {"quant_method": "aqlm"},
            "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
            "gptq marlin": {"quant_method": "gptq", "checkpoint_format": "marlin"},
            "awq gemv_fast": {"quant_method": "awq", "version": "gemv_fast"},
            "compressed-tensors marlin-24": {
                "quant_method": "compressed-tensors", "format": "marlin-24"},
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named(case, model):
    layer, settings, message = MISTAKES[case]
    config = {"quantization_config": settings} if settings else {}
    path = model("x", {f"a.{name}": tensor for name, tensor in layer.items()}, config)
    checkpoint, errors, _ = opened(path)
    assert checkpoint is None
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"{path}: {message}" if message.startswith("tensor a")
                                else f"{path} {message}")  # fmt: skip
    assert errors[0].endswith((DAMAGED, UNKNOWN))


def test_mlx_and_transposed_models_are_refused_by_name(model):
    path = model("mlx", {"a.weight": torch.ones(4, 4)}, {"quantization": {"bits": 4}})
    assert "is quantized (MLX)" in opened(path)[1][0]
    layer = {f"h.0.{name}": tensor for name, tensor in GPTQ.items()}
    path = model("gpt2", layer, {"model_type": "gpt2", "quantization_config": {"bits": 4}})
    assert (
        "is a gpt2 model, whose quantized layers (GPTQ 4-bit) are stored transposed"
        in (opened(path)[1][0])
    )


def test_a_quantization_that_was_only_for_loading_is_no_quantization(model):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path = model("x", {"a.weight": torch.ones(4, 4)}, {"quantization_config": settings})
    checkpoint, errors, warnings = opened(path)
    assert (errors, warnings) == ([], [])
    assert checkpoint is not None
    assert checkpoint.tensors["a.weight"].dtype == "F32"

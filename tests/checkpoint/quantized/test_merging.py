"""Quantized inputs merged with float siblings: the numbers, the files, and what loads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import llama, llama_config, save
from safetensors.torch import load_file

import mergeloom

from . import layouts

Tensors = dict[str, torch.Tensor]


def quantized(weights: Tensors, kind: str) -> tuple[Tensors, Tensors, dict[str, object]]:
    """(stored tensors, the numbers they mean, settings) with every projection quantized."""
    stored, meant = dict(weights), dict(weights)
    for name, tensor in weights.items():
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = tensor.shape
        if kind == "fp8":
            layer, meant[name] = layouts.block_float8(rows, columns)
        else:
            layer, meant[name] = layouts.bitsandbytes4(rows, columns, nested=True)
        del stored[name]
        stored |= {name.removesuffix("weight") + part: value for part, value in layer.items()}
    method = "fp8" if kind == "fp8" else "bitsandbytes"
    return stored, meant, {"quant_method": method, "load_in_4bit": kind != "fp8"}


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
@pytest.mark.parametrize("base", ["float", "quantized"])
def test_a_merge_equals_that_of_the_numbers(kind, base, tmp_path):
    import transformers

    theirs = llama(2, seed=1, dtype=torch.bfloat16)
    stored, meant, settings = quantized(llama(2, seed=0, dtype=torch.bfloat16), kind)
    config = llama_config(2, torch_dtype="bfloat16")
    save(tmp_path / "float", theirs, config)
    save(tmp_path / "quantized", stored, config | {"quantization_config": settings},
         files={"quantize_config.json": "{}"})  # fmt: skip
    order = [tmp_path / base] + [tmp_path / n for n in ("float", "quantized") if n != base]
    entries = [{"model": str(path), "parameters": {"weight": 0.5}} for path in order]
    recipe = {"merge_method": "linear", "models": entries}
    done = mergeloom.merge(recipe, tmp_path / "out", card=False)
    assert [w.message for w in done.plan.warnings] == [
        f"{tmp_path / 'quantized'} is "
        + ("FP8 with a scale for each tensor" if kind == "fp8" else "bitsandbytes 4-bit (nf4)")
        + "; dequantizing it while reading"
    ]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == theirs.keys()
    for name, tensor in merged.items():
        wanted = 0.5 * theirs[name].float() + 0.5 * meant[name].float()
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, wanted.bfloat16(), rtol=0, atol=0)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == config
    assert not (tmp_path / "out" / "quantize_config.json").exists()
    _, told = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(told.values())


def test_a_state_dict_with_codes_is_merged_as_numbers():
    stored, meant, _ = quantized(llama(1, seed=0), "nf4")
    other = llama(1, seed=1)
    recipe = {"merge_method": "linear", "dtype": "float32",
              "models": [{"model": n, "parameters": {"weight": 0.5}} for n in "ab"]}  # fmt: skip
    merged = mergeloom.merge_state_dicts(recipe, {"a": stored, "b": other})
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name], 0.5 * meant[name] + 0.5 * other[name])


def test_the_same_bytes_in_any_memory_and_number_of_threads(tmp_path):
    """Rows longer and shorter than blocks, ends inside of rows."""
    layer, meant = layouts.gptq(640, 544, 3, 32)
    tensors = {f"a.{name}": tensor for name, tensor in layer.items()}
    path = save(tmp_path / "x", tensors, {"quantization_config": {"quant_method": "gptq"}})
    for threads in (1, 3):
        out = tmp_path / f"out{threads}"
        mergeloom.merge({"merge_method": "passthrough", "models": [str(path)]}, out,
                        threads=threads)  # fmt: skip
        got = load_file(out / "model.safetensors")["a.weight"]
        torch.testing.assert_close(got, meant.bfloat16(), rtol=0, atol=0)


def test_inputs_are_told_apart_by_the_headers_of_their_files(tmp_path):
    from mergeloom.checkpoint import fingerprint

    from ..support import opened

    found = set()
    for number in range(2):
        layer = layouts.channel_float8(6, 10)[0]
        path = save(Path(tmp_path / f"x{number}"), {f"{number}.{n}": t for n, t in layer.items()})
        checkpoint = opened(path)[0]
        assert checkpoint is not None
        found.add(fingerprint(checkpoint))
    assert len(found) == 2

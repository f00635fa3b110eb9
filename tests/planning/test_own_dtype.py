"""Tensors that keep the dtype they are stored in when a recipe asks for another one."""

from __future__ import annotations

from pathlib import Path

import torch
from models import llama

import mergeloom
from mergeloom.checkpoint import MemoryTensor
from mergeloom.planning import Options, plan_opened
from mergeloom.types import Checkpoint

OWN = {"model.layers.0.mixer.A_log": (4,), "model.layers.0.mixer.D": (4,),
       "model.layers.0.mixer.dt_bias": (4,),
       "model.layers.0.mlp.gate.e_score_correction_bias": (3,),
       "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}  # fmt: skip


def dtypes(options: Options | None = None, **recipe: str) -> dict[str, str]:
    tensors = {**llama(1), **{name: torch.ones(shape) for name, shape in OWN.items()},
               "model.layers.0.attn.bias": torch.ones(4)}  # fmt: skip
    loaded = mergeloom.load_recipe({"merge_method": "linear", **recipe, "models": [
        {"model": name, "parameters": {"weight": 0.5}} for name in "AB"]})  # fmt: skip
    views = {name: MemoryTensor(tensor) for name, tensor in tensors.items()}
    opened = {r: Checkpoint(str(r), Path(), views, {}) for r in loaded.models()}
    plan = plan_opened(loaded, opened, options)
    merged = {job.name for job in plan.jobs if job.method}
    assert "model.layers.0.attn.bias" in merged  # one axis: a parameter and no mask
    assert set(OWN) - merged == {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    return {job.name: job.dtype for job in plan.jobs}


def test_a_dtype_is_not_for_what_is_kept_in_float32_on_purpose():
    found = dtypes(dtype="bfloat16")
    assert {found[name] for name in OWN} == {"F32"}
    assert {dtype for name, dtype in found.items() if name not in OWN} == {"BF16"}


def test_cast_all_casts_all_but_constants():
    found = dtypes(Options(cast_all=True), dtype="bfloat16")
    assert {name for name, dtype in found.items() if dtype == "F32"} == {
        "model.layers.0.self_attn.rotary_emb.inv_freq"
    }

"""Weights that are no folders of transformers: single files of image models, parts of pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import save
from safetensors.torch import load_file, save_file

import mergeloom

Tensors = dict[str, torch.Tensor]


def filled(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=random) for n, s in shapes.items()}


def flux(seed: int) -> Tensors:
    """Flux as its authors write it: two stacks, no prefix, no config."""
    shapes = {"img_in.weight": (8, 4), "time_in.in_layer.weight": (8, 8),
              "final_layer.linear.weight": (4, 8)}  # fmt: skip
    for i in range(3):
        shapes |= {f"double_blocks.{i}.img_attn.qkv.weight": (24, 8),
                   f"double_blocks.{i}.txt_mlp.0.weight": (8, 8)}  # fmt: skip
    for i in range(5):
        shapes |= {f"single_blocks.{i}.linear1.weight": (24, 8),
                   f"single_blocks.{i}.norm.query_norm.scale": (8,)}  # fmt: skip
    return filled(shapes, seed)


def stable_diffusion(seed: int) -> Tensors:
    unet, text = "model.diffusion_model", "cond_stage_model.transformer.text_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{unet}.input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{unet}.middle_block.0.in_layers.2.weight": (8, 8, 3, 3),
        f"{unet}.out.2.weight": (4, 8, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        f"{text}.embeddings.token_embedding.weight": (20, 6),
    }
    for i in (1, 2):
        shapes[f"{unet}.input_blocks.{i}.0.in_layers.2.weight"] = (8, 8, 3, 3)
        shapes[f"{unet}.input_blocks.{i}.1.transformer_blocks.0.attn1.to_q.weight"] = (8, 8)
        shapes[f"{text}.encoder.layers.{i - 1}.self_attn.q_proj.weight"] = (6, 6)
    made = filled(shapes, seed)
    return {**made, f"{text}.embeddings.position_ids": torch.arange(7)[None]}


def test_a_flux_file_and_one_of_another_program_merge_by_their_blocks(tmp_path):
    a, b = flux(0), flux(1)
    save_file(a, tmp_path / "a.safetensors")
    save_file({f"model.diffusion_model.{n}": t for n, t in b.items()}, tmp_path / "b.safetensors")
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(tmp_path / "a.safetensors"),
        "models": [{"model": str(tmp_path / "b.safetensors"), "parameters": {"weight": [
            {"filter": "single_blocks", "value": [0, 1]},
            {"filter": "double_blocks", "value": [1, 0]}, {"value": 0.5}]}}],
    }  # fmt: skip
    out = mergeloom.merge(recipe, tmp_path / "out").out
    weights = {f"single_blocks.{i}.": i / 4 for i in range(5)}
    weights |= {f"double_blocks.{i}.": 1 - i / 2 for i in range(3)}
    got = load_file(out / "model.safetensors")
    assert got.keys() == a.keys()
    for name, tensor in got.items():
        w = next((w for start, w in weights.items() if name.startswith(start)), 0.5)
        torch.testing.assert_close(tensor, a[name] + w * (b[name] - a[name]))


def test_a_stable_diffusion_file_and_a_training_checkpoint_of_one(tmp_path):
    a, b = stable_diffusion(0), stable_diffusion(1)
    save_file(a, tmp_path / "a.safetensors")
    torch.save({"state_dict": b, "optimizer_states": [], "global_step": 3}, tmp_path / "b.ckpt")
    recipe = {"merge_method": "linear", "parameters": {"weight": 1},
              "models": [str(tmp_path / "a.safetensors"), str(tmp_path / "b.ckpt")],
              "exclude": "first_stage_model.*"}  # fmt: skip
    out = mergeloom.merge(recipe, tmp_path / "out").out
    got = load_file(out / "model.safetensors")
    for name, tensor in got.items():
        same = name.startswith("first_stage") or not tensor.is_floating_point()
        torch.testing.assert_close(tensor, a[name] if same else (a[name] + b[name]) / 2)
    assert got.keys() == a.keys()


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    config = {"_class_name": "UNet2DConditionModel", "block_out_channels": [8, 8]}
    for name in "AB":
        part = save(tmp_path / name / "unet", flux(ord(name)), config)
        (part / "model.safetensors").rename(part / "diffusion_pytorch_model.safetensors")
        (tmp_path / name / "model_index.json").write_text("{}")
    return tmp_path


def test_a_part_of_a_pipeline_keeps_the_names_that_diffusers_looks_for(pipeline):
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}, "dtype": "float16",
              "models": [str(pipeline / n / "unet") for n in "AB"]}  # fmt: skip
    out = mergeloom.merge(recipe, pipeline / "out").out
    assert (out / "diffusion_pytorch_model.safetensors").is_file()
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (pipeline / "A" / "unet" / "config.json").read_text()
    )
    small = mergeloom.Options(out_shard_size=2000)
    out = mergeloom.merge(recipe, pipeline / "shards", options=small).out
    index = json.loads((out / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert {out / file for file in index["weight_map"].values()} == set(out.glob("*.safetensors"))
    assert {p.name[:24] for p in out.glob("*.safetensors")} == {"diffusion_pytorch_model-"}


def test_a_whole_pipeline_is_refused_with_its_parts(pipeline):
    recipe = {"merge_method": "linear", "models": [str(pipeline / n) for n in "AB"]}
    with pytest.raises(
        mergeloom.CheckpointError, match=r"a diffusers pipeline .*: unet"
    ) as failure:
        mergeloom.plan(recipe)
    assert str(pipeline / "A" / "unet") in str(failure.value)

"""Models of different kinds: refused, told, or merged as far as they match."""

from __future__ import annotations

import pytest
import torch
from models import llama, llama_config, save
from recipes import jobs, planned, sources

import mergeloom

LAYERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A: a llama. S: the same tensors by another name. Q: biases more. W: wider. N: no type."""
    folder = tmp_path_factory.mktemp("kinds")
    other = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    save(folder / "A", llama(LAYERS), llama_config(LAYERS))
    save(folder / "S", llama(LAYERS, 1), llama_config(LAYERS, model_type="mistral"))
    biases = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(8) for i in range(LAYERS)}
    save(folder / "Q", llama(LAYERS, 2) | biases, llama_config(LAYERS, **other))
    wide = {n: torch.cat([t, t]) if "mlp" in n else t for n, t in llama(LAYERS, 3).items()}
    save(folder / "W", wide, {**llama_config(LAYERS), **other, "intermediate_size": 24})
    config = llama_config(LAYERS)
    del config["model_type"]
    save(folder / "N", llama(LAYERS, 4) | biases, config)
    return folder


def recipe(*names: str) -> str:
    models = ", ".join(f"{{model: {n}}}" for n in names)
    return f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\n"


def test_the_same_tensors_under_another_name_are_merged_and_it_is_told(folder):
    plan = planned(folder, recipe("A", "S"))
    (told,) = [w for w in plan.warnings if "another kind" in w.message]
    assert "(model_type mistral vs llama), but their tensors have the same names" in told.message
    assert all(len(job.inputs) == 2 for job in plan.jobs)


def test_other_tensors_are_refused_with_the_fields_and_what_the_flag_does(folder):
    with pytest.raises(mergeloom.CheckpointError) as failure:
        planned(folder, recipe("A", "Q"))
    (problem,) = failure.value.problems
    assert problem.where == "models[1]"
    assert "model_type qwen2 vs llama, architectures Qwen2ForCausalLM vs LlamaForCausalLM; " in (
        problem.message
    )
    assert f"match and {LAYERS} do not: model.layers.0.self_attn.q_proj.bias" in problem.message
    assert "--allow-crimes merges the tensors whose names and shapes match" in problem.hint
    with pytest.raises(mergeloom.CheckpointError, match="intermediate_size 24 vs 12"):
        planned(folder, recipe("A", "W"))


def test_crimes_merge_what_matches_and_copy_the_rest_from_the_base(folder):
    plan = planned(folder, recipe("A", "W"), allow_crimes=True)
    for name, job in jobs(plan).items():
        if "mlp" in name:
            assert (job.method, sources(job), job.why) == (None, [f"A:{name}"], "of another shape")
        else:
            assert len(job.inputs) == 2
    told = [str(w) for w in plan.warnings]
    assert any(f"{3 * LAYERS} tensors do not match and are copied" in w for w in told)
    plan = planned(folder, recipe("Q", "A"), allow_crimes=True)
    copied = {job.name: job.why for job in plan.jobs if job.method is None}
    assert set(copied.values()) == {"not in every model"}
    assert all(name.endswith("bias") for name in copied)


def test_models_that_say_nothing_are_compared_by_their_tensors_alone(folder):
    assert all(job.method for job in planned(folder, recipe("A", "N")).jobs)
    with pytest.raises(mergeloom.CheckpointError, match="lacks 2 of the"):
        planned(folder, recipe("N", "A"))


def test_crimes_without_one_match_are_refused(folder, tmp_path):
    save(tmp_path / "X", {"model.norm.weight": torch.ones(3)}, {"model_type": "x"})
    save(tmp_path / "Y", {"model.norm.weight": torch.ones(4)}, {"model_type": "y"})
    with pytest.raises(mergeloom.MergeloomError, match="not one tensor of these models matches"):
        planned(tmp_path, recipe("X", "Y"), allow_crimes=True)

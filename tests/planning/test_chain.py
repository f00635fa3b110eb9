"""Several documents in one file: planned together, run in turn, intermediates named and removed."""

from __future__ import annotations

import json

import pytest
import torch
from models import assert_same_files
from safetensors import safe_open
from safetensors.torch import load_file
from stopping import Stop, stop_after

import mergeloom
from mergeloom import Options
from mergeloom.cli.report import plan_json, plan_text
from mergeloom.cli.sizes import show_size


def chain(folder, weight: float = 0.25) -> str:
    return f"""
name: first
merge_method: linear
models:
- {{model: {folder / "A"}, parameters: {{weight: {weight}}}}}
- {{model: {folder / "B"}, parameters: {{weight: 0.75}}}}
---
name: second
merge_method: passthrough
slices:
- sources: [{{model: first, layer_range: [0, 3]}}]
- sources: [{{model: first, layer_range: [1, 4]}}]
---
merge_method: slerp
base_model: second
models: [{{model: second}}, {{model: third}}]
parameters: {{t: 0.5}}
---
name: third
merge_method: passthrough
models: [{{model: second, parameters: {{scale: 2}}}}]
"""


def test_documents_run_in_the_order_they_need(folder, tmp_path):
    out = tmp_path / "out"
    plan = mergeloom.plan(chain(folder))
    assert [p.recipe.name for p in plan.chain] == ["first", "second", "third"]
    done = mergeloom.merge(chain(folder), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert done.plan.config["num_hidden_layers"] == 6
    a, b, got = (load_file(p / "model.safetensors") for p in (folder / "A", folder / "B", out))
    for i, layer in enumerate((0, 1, 2, 1, 2, 3)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        wanted = 1.5 * (0.25 * a[name] + 0.75 * b[name])  # half of the sum and of twice the sum
        torch.testing.assert_close(got[f"model.layers.{i}.mlp.up_proj.weight"], wanted)


def test_a_document_named_like_a_hub_model_leaves_nothing_behind(folder, tmp_path):
    mergeloom.merge(chain(folder).replace("second", "org/A"), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_mistakes_of_every_document_are_told_at_once(folder):
    """And nothing of a document that only lacks the result of another one."""
    text = chain(folder).replace(str(folder / "B"), "./nowhere")
    with pytest.raises(mergeloom.CheckpointError) as caught:
        mergeloom.plan(text.replace("{model: third}", "{model: ./nobody}"))
    assert [str(p).partition(" does")[0] for p in caught.value.problems] == [
        "models[1] (line 6): ./nowhere",
        "models[1] (line 16): ./nobody",
    ]


def test_planned_offsets_are_those_of_the_files_that_are_written(folder, tmp_path):
    plan = mergeloom.plan(chain(folder), Options(intermediates=tmp_path / "kept"))
    views = {i.view for job in plan.jobs for i in job.inputs}
    mergeloom.merge(chain(folder), tmp_path / "out", keep_intermediates=True,
                    options=Options(intermediates=tmp_path / "kept"))  # fmt: skip
    kept = sorted((tmp_path / "kept").iterdir())
    assert [p.name for p in kept] == sorted(p.folder.name for p in plan.chain)
    assert [p.name.partition("-")[0] for p in kept] == ["first", "second", "third"]
    reread = mergeloom.plan(
        {"merge_method": "slerp", "base_model": str(plan.chain[1].folder), "parameters": {"t": 0.5},
         "models": [{"model": str(p.folder)} for p in plan.chain[1:]]}
    )  # fmt: skip
    assert {i.view for job in reread.jobs for i in job.inputs} == views


def test_finished_intermediates_are_used_again_and_others_are_not(folder, tmp_path):
    options = Options(intermediates=tmp_path / "kept")
    calls = []

    def run(text: str, out: str) -> int:
        calls.clear()
        mergeloom.merge(text, tmp_path / out, keep_intermediates=True, options=options,
                        progress=lambda read, written: calls.append(written))  # fmt: skip
        return len(calls)

    whole = run(chain(folder), "one")
    assert run(chain(folder), "two") < whole
    assert_same_files_but_name(tmp_path / "one", tmp_path / "two")
    assert run(chain(folder, weight=0.5), "three") == whole
    assert len(list((tmp_path / "kept").iterdir())) == 6


def assert_same_files_but_name(one, two):
    for folder in (one, two):  # the card's title is the folder's name
        card = folder / "README.md"
        card.write_text(card.read_text().replace(f"# {folder.name}\n", "# x\n"))
    assert_same_files(one, two)


def test_a_chain_stopped_in_its_middle_goes_on(folder, tmp_path):
    mergeloom.merge(chain(folder), tmp_path / "whole" / "out")
    for pieces in (3, 30, 60, 90, 130):
        progress = stop_after(pieces)
        with pytest.raises(Stop):
            mergeloom.merge(chain(folder), tmp_path / "out", progress=progress, threads=1)
        assert not (tmp_path / "out").exists()
    mergeloom.merge(chain(folder), tmp_path / "out")
    assert_same_files(tmp_path / "out", tmp_path / "whole" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_only_model_references_mean_documents(folder, tmp_path):
    text = chain(folder).replace("t: 0.5", "t: [{filter: first, value: 1}, {value: 0.5}]")
    with pytest.raises(mergeloom.RecipeError, match="matched 0"):
        mergeloom.plan(text)


def test_nothing_of_this_machine_in_the_files_of_a_chain(folder, tmp_path):
    mergeloom.merge(chain(folder), tmp_path / "out")
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert str(folder).encode() not in raw
    assert str(folder) not in (tmp_path / "out" / "README.md").read_text()


def test_a_chain_is_recorded_with_all_its_documents_and_inputs(folder, tmp_path):
    """Nobody could repeat ``models: [second, third]`` without what these were made of."""
    text = chain(folder)
    mergeloom.merge(text, tmp_path / "out")
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == text
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["mergeloom"])
    assert told["recipe"] == text.replace(f"{folder}/", "")
    assert [i["name"] for i in told["inputs"]] == ["A", "B"]
    assert len({i["fingerprint"] for i in told["inputs"]} - {"0" * 64}) == 2
    assert told["recipe"].strip() in (tmp_path / "out" / "README.md").read_text()


TWO = """
name: first
merge_method: linear
models: [{{model: {a}, parameters: {{weight: 1}}}}]
---
merge_method: passthrough
models: [{{model: {reference}}}]
"""


@pytest.mark.parametrize("reference", ["first+adapter", "{model: first, lora: adapter}"])
def test_an_adapter_on_a_document_is_refused_and_not_forgotten(folder, reference):
    with pytest.raises(mergeloom.CheckpointError, match=r"not supported yet.*first\+adapter"):
        mergeloom.plan(TWO.format(a=folder / "A", reference=reference))


def test_a_revision_of_a_document_is_told_to_mean_nothing(folder):
    plan = mergeloom.plan(TWO.format(a=folder / "A", reference="first@v2"))
    assert [p.recipe.name for p in plan.chain] == ["first"]
    assert any("its revision is not looked at" in str(warning) for warning in plan.warnings)


def test_the_architecture_of_a_document_can_be_overridden(folder):
    reference = "{model: first, override_architecture: OtherForCausalLM}"
    plan = mergeloom.plan(TWO.format(a=folder / "A", reference=reference))
    assert plan.config["architectures"] == ["OtherForCausalLM"]


def test_disk_space_is_asked_for_all_documents_before_the_first_runs(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "mergeloom.output.directory.check_space", lambda out, needed: asked.append((out, needed))
    )
    plan = mergeloom.merge(chain(folder), tmp_path / "out").plan
    assert asked[0] == (tmp_path / "out", sum(p.bytes_out for p in (*plan.chain, plan)))


def test_the_plan_of_a_chain_states_the_disk_of_all_documents(folder):
    plan = mergeloom.plan(chain(folder))
    assert plan.disk == plan.bytes_out + sum(part.bytes_out for part in plan.chain)
    assert f"need {show_size(plan.disk)} of disk" in plan_text(plan, show_parameters=False)
    assert plan_json(plan)["disk"] == plan.disk

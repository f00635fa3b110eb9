"""Which bytes go where: shards, headers, index, config and side files of a plan."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import llama, llama_config, save
from recipes import jobs, planned
from safetensors import safe_open
from safetensors.torch import load, load_file

import mergeloom
from mergeloom import Job, Options
from mergeloom.planning.shards import header, index, shard
from mergeloom.types import DTYPES

KINDS = sorted(set(DTYPES) - {"F8_E8M0", "C64", "U16", "U32", "U64"})


@st.composite
def job_lists(draw):
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    kinds = draw(st.lists(st.tuples(st.sampled_from(KINDS), shapes), min_size=1, max_size=9))
    return [Job(f"é{i}", kind, shape, None, ()) for i, (kind, shape) in enumerate(kinds)]


@given(job_lists(), st.integers(1, 300))
def test_shards_are_valid_files_that_hold_every_tensor_once(made, limit):
    shards = shard(made, limit)
    assert sorted(n for s in shards for n in s.jobs) == list(range(len(made)))
    count = len(shards)
    for number, part in enumerate(shards, 1):
        name = (
            f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        )
        assert part.file == name
        sizes = [made[n].nbytes for n in part.jobs]
        assert sum(sizes) == part.data_bytes
        assert part.data_bytes <= limit or len([s for s in sizes if s]) == 1
        for offset, n in zip(part.offsets, part.jobs, strict=True):
            assert offset % DTYPES[made[n].dtype].bytes == 0  # aligned: readers map it
        raw = header(part, made, {"format": "pt"})
        assert len(raw) % 8 == 0
        loaded = load(raw + bytes(part.data_bytes))  # the library checks offsets, sizes, overlaps
        assert {n: tuple(t.shape) for n, t in loaded.items()} == {
            made[n].name: made[n].shape for n in part.jobs
        }
    # Greedy: a shard could not have taken the first tensor of the next one.
    for one, two in pairwise(shards):
        assert one.data_bytes + made[min(two.jobs)].nbytes > limit
    listed = index(shards, made)
    assert (listed is None) == (count == 1)
    if listed:
        content = json.loads(listed)
        assert content["metadata"]["total_size"] == sum(j.nbytes for j in made)
        assert content["weight_map"] == {made[n].name: s.file for s in shards for n in s.jobs}


LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: A}, {model: B}]\n"


@pytest.mark.parametrize("limit", [10**9, 2000, 1])
def test_the_plan_tells_the_files_that_are_written(folder, limit, tmp_path):
    plan = planned(folder, LINEAR, out_shard_size=limit)
    mergeloom.merge(plan.recipe, tmp_path / "out", options=Options(out_shard_size=limit))
    written = {p.name: p for p in (tmp_path / "out").glob("*.safetensors")}
    assert set(written) == {s.file for s in plan.shards}
    for part in plan.shards:
        raw = written[part.file].read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        assert len(raw) == start + part.data_bytes
        found = json.loads(raw[8:start])
        assert found.pop("__metadata__")["format"] == "pt"
        assert {name: entry["data_offsets"] for name, entry in found.items()} == {
            plan.jobs[n].name: [offset, offset + plan.jobs[n].nbytes]
            for n, offset in zip(part.jobs, part.offsets, strict=True)
        }
        with safe_open(written[part.file], "pt") as file:
            assert set(file.keys()) == set(found)
    has_index = (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert has_index == (len(plan.shards) > 1)


@pytest.mark.parametrize(("top", "stored", "named"), [
    ("", torch.float32, "float32"),
    ("dtype: bfloat16", torch.bfloat16, "bfloat16"),
    ("dtype: bfloat16\nout_dtype: float16", torch.float16, "float16"),
    ("out_dtype: float64", torch.float64, "float64"),
])  # fmt: skip
def test_dtypes_of_tensors_and_config(folder, tmp_path, top, stored, named):
    plan = planned(folder, LINEAR + top)
    assert plan.config["torch_dtype"] == named
    mergeloom.merge(plan.recipe, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in got.values()} == {stored}
    # The merge is computed in float32 and rounded once, whatever dtype says.
    a, b = (load_file(folder / n / "model.safetensors") for n in "AB")
    wide = {n: (a[n].double() + b[n].double()) / 2 for n in a}
    assert all(torch.allclose(got[n].double(), wide[n], atol=1e-2) for n in wide)


def test_what_include_and_exclude_leave_out_is_the_base(folder):
    q = "model.layers.1.self_attn.q_proj.weight"
    cases = [("include: ['*.self_attn.*']", True), ("exclude: ['*.self_attn.*']", False),
             ("include: ['*']\nexclude: ['re:layers\\.[01]\\.']", False)]  # fmt: skip
    for words, merged in cases:
        made = jobs(planned(folder, LINEAR + words))
        assert (made[q].method == "linear") is merged
        copies = [j for j in made.values() if j.method is None]
        assert copies
        assert all(len(j.inputs) == 1 for j in copies)
        assert all(j.inputs[0].model == str(folder / "A") for j in copies)
    with_base = jobs(planned(folder, LINEAR + "base_model: B\nexclude: ['lm_head*']"))
    assert with_base["lm_head.weight"].inputs[0].model == str(folder / "B")
    assert len(with_base["model.norm.weight"].inputs) == 2


def test_the_donor_is_the_base_or_the_first_model(folder):
    for top, donor in (("", "A"), ("base_model: B", "B")):
        plan = planned(folder, LINEAR + top)
        assert plan.donor == str(folder / donor)


def test_tied_and_untied(folder):
    tied = jobs(planned(folder, LINEAR.replace("model: A", "model: T")))
    assert [i.tensor for i in tied["lm_head.weight"].inputs] == ["model.embed_tokens.weight",
                                                                 "lm_head.weight"]  # fmt: skip
    both = planned(folder, LINEAR.replace("model: A", "model: T").replace("model: B", "model: T"))
    assert "lm_head.weight" not in jobs(both)
    assert both.config["tie_word_embeddings"] is True
    plan = planned(folder, LINEAR.replace("model: B", "model: T"))
    assert plan.config["tie_word_embeddings"] is False


def test_a_head_that_a_tied_model_stores_is_only_true_where_all_store_one(folder, tmp_path):
    """Luke's models say that they are tied and store another head; a plain tied one has none."""
    config = llama_config(4, tie_word_embeddings=True)
    for seed, name in enumerate(("one", "two")):
        save(tmp_path / name, llama(4, seed), config)
    plan = planned(
        tmp_path, LINEAR.replace("model: A", "model: one").replace("model: B", "model: two")
    )
    assert plan.config["tie_word_embeddings"] is True
    save(tmp_path / "two", llama(4, 1, head=False), config)
    plan = planned(
        tmp_path, LINEAR.replace("model: A", "model: one").replace("model: B", "model: two")
    )
    assert plan.config["tie_word_embeddings"] is False


@pytest.mark.parametrize("rows", [20, 12])
def test_vocabularies_of_different_sizes(folder, tmp_path, rows):
    tensors = llama(4, 5)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(rows, 8)
    save(tmp_path / "V", tensors, llama_config(4, vocab_size=rows))
    recipe = {"merge_method": "linear", "parameters": {"weight": 1},
              "models": [{"model": str(folder / "A")}, {"model": str(tmp_path / "V")}]}  # fmt: skip
    with pytest.raises(mergeloom.CheckpointError, match=f"16 vocabulary rows.* {rows}"):
        mergeloom.plan(recipe)
    plan = mergeloom.plan(recipe, Options(unsafe_truncate_embeddings=True))
    cut = min(rows, 16)
    assert jobs(plan)["lm_head.weight"].shape == (cut, 8)
    assert plan.config["vocab_size"] == cut
    mergeloom.merge(recipe, tmp_path / "out", options=Options(unsafe_truncate_embeddings=True))
    got = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    ours = load_file(folder / "A" / "model.safetensors")["lm_head.weight"]
    torch.testing.assert_close(got, (ours[:cut] + tensors["lm_head.weight"][:cut]) / 2)


def test_a_tensor_outside_the_layers_that_an_input_lacks(folder, tmp_path):
    missing = "model.norm.weight"
    recipe, models = lacking(folder, tmp_path, missing)
    plan = mergeloom.plan(recipe)
    kept = jobs(plan)[missing]
    assert (kept.method, kept.inputs[0].model) == (None, str(folder / "A"))
    assert any(missing in str(w) for w in plan.warnings)
    # The other way round it is the donor that lacks it: told, because nothing else would.
    plan = mergeloom.plan({**recipe, "models": models[::-1]})
    assert missing not in jobs(plan)
    assert plan.unused == {str(folder / "A"): (missing,)}
    assert any(missing in str(w) for w in plan.warnings)
    with pytest.raises(mergeloom.CheckpointError, match="lacks 1 of the"):
        mergeloom.plan({**recipe, "models": [*models, {"model": str(folder / "B")}]})


def test_a_layer_tensor_that_an_input_lacks_is_a_mistake(folder, tmp_path):
    recipe, _ = lacking(folder, tmp_path, "model.layers.2.mlp.up_proj.weight")
    with pytest.raises(mergeloom.CheckpointError, match="lacks 1 of the"):
        mergeloom.plan(recipe)


def lacking(folder, tmp_path, missing):
    tensors = llama(4, 5)
    del tensors[missing]
    save(tmp_path / "V", tensors, llama_config(4))
    models = [{"model": str(folder / "A")}, {"model": str(tmp_path / "V")}]
    return {"merge_method": "linear", "parameters": {"weight": 1}, "models": models}, models


def test_a_plan_has_the_same_digest_until_something_changes(folder):
    first = planned(folder, LINEAR)
    assert planned(folder, LINEAR).digest == first.digest
    others = [planned(folder, LINEAR.replace("weight: 1", "weight: 2")),
              planned(folder, LINEAR, out_shard_size=2000), planned(folder, LINEAR, seed=1),
              planned(folder, LINEAR.replace("model: B", "model: T"))]  # fmt: skip
    assert len({p.digest for p in (first, *others)}) == 5

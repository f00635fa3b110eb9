"""What a merge says while it runs, and recipes as people write and name them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mergeloom.cli import main, progress
from mergeloom.engine.sink import ShardFiles

from .models import linear, model
from .program import merge, mistakes, run

GOOD = linear("./A", "./B")
DONE = re.compile(r"out: 31 tensors, 4\.6 kB in \d+\.\d s")


# --- what is said --------------------------------------------------------------------------------


def test_a_short_merge_says_one_line(models):
    done = merge(GOOD)
    assert (done.code, done.out) == (0, "")
    assert len(done.lines) == 1
    assert DONE.fullmatch(done.lines[0])


def test_a_long_merge_says_how_far_it_is(models, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    done = merge(GOOD, "--threads", 1)
    *lines, last = done.lines
    told = re.compile(r"read [\d.]+ k?B of 9\.1 kB, [\d.]+ [kMG]?B/s, \d+ s left")
    assert len(lines) == 31
    assert all(told.fullmatch(line) for line in lines), lines
    assert lines[-1].startswith("read 9.1 kB of 9.1 kB, ")
    assert DONE.fullmatch(last)


def test_quiet_says_nothing_not_even_warnings(models):
    done = merge(GOOD + "parameters: {normalise: 1}\n", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = merge(linear("./A", "./no"), "-q", out="again")
    assert mistakes(done) == ["models[1] (line 4): ./no does not exist (looks like a local path)"]


def test_verbose_prints_the_plan_first(models):
    done = merge(GOOD, "-v")
    plan = run("plan", "r.yml", "--show-parameters").out.splitlines()
    assert (done.code, done.out) == (0, "")
    assert done.lines[: len(plan)] == plan
    assert DONE.fullmatch(done.lines[-1])


def test_timings_are_written_as_json(models):
    assert merge(GOOD, "--timings", "out/t.json").code == 0
    found = json.loads(Path("out/t.json").read_text())
    assert (found["bytes_read"], found["bytes_written"]) == (9120, 4560)
    assert 0 <= found["engine_seconds"] <= found["total_seconds"]


def test_timings_that_cannot_be_written_do_not_hide_the_merge(models, monkeypatch):
    monkeypatch.setattr(Path, "write_text", refuse(Path.write_text))
    done = merge(GOOD, "--timings", "t.json")
    assert mistakes(done) == [
        "--timings: the merge is finished, but t.json cannot be written: No space left on device"
    ]
    assert Path("out/model.safetensors").is_file()


def refuse(write):
    def write_text(path, *arguments, **more):
        if path.name == "t.json":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **more)

    return write_text


def test_an_interrupt_says_how_to_go_on(models, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run_merge", interrupted)
    done = merge(GOOD)
    assert done.code == 130
    assert done.lines[-1] == "stopped; run the same command again to continue where it stopped"


def test_a_defect_is_told_as_one(models, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(main, "run_merge", broken)
    done = merge(GOOD)
    assert done.code == 1
    assert "ZeroDivisionError: ours" in done.lines
    assert done.lines[-1] == "this is a defect of mergeloom: please report it with the lines above"


def test_an_interrupted_merge_goes_on(models, monkeypatch):
    place = ShardFiles.place
    tensors = 0

    def stop(*arguments):
        nonlocal tensors
        tensors += 1
        if tensors > 12:
            raise KeyboardInterrupt
        return place(*arguments)

    with monkeypatch.context() as while_it_runs:
        while_it_runs.setattr(ShardFiles, "place", stop)
        assert merge(GOOD, "--threads", 1).code == 130
    assert not Path("out").exists()
    done = merge(GOOD)
    assert re.fullmatch(r"out: 31 tensors, 1\d of them from an earlier run, .*", done.lines[-1])
    merge(GOOD, out="again")
    assert (
        Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    )


# --- recipes and models as people write them -----------------------------------------------------

SPELLINGS = {
    "CRLF": GOOD.replace("\n", "\r\n").encode(),
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "no line at the end": GOOD.rstrip().encode(),
    "document marks": f"---\n{GOOD}...\n".encode(),
    "JSON": json.dumps(
        {
            "merge_method": "linear",
            "models": [{"model": f"./{m}", "parameters": {"weight": 0.5}} for m in "AB"],
        }
    ).encode(),
    "slashes at the end": linear("./A/", "B//").encode(),
    "weights as texts": GOOD.replace("0.5", "'0.5'").encode(),
    "emoji and accents in a comment": f"# mödel 🤖\n{GOOD}".encode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_recipe_means_the_same_however_it_is_spelt(spelling, models):
    assert merge(GOOD, out="plain").code == 0
    assert merge(SPELLINGS[spelling]).code == 0
    ours, theirs = load_file("out/model.safetensors"), load_file("plain/model.safetensors")
    assert list(ours) == list(theirs)
    assert all(ours[name].equal(theirs[name]) for name in ours)
    if spelling != "UTF-16":  # the copy is always UTF-8
        assert Path("out/mergekit_config.yml").read_bytes() == SPELLINGS[spelling]


NAMES = ["my model", "mödel 🤖", "a+b", "a@b", "model.v1.5", "-dash", "a,b", "50%", "x" * 200]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_model_may_be_called_anything(name, here):
    for parent in ("one", "two"):
        model(here / parent / name, seed=len(parent))
    recipe = linear(f"'./one/{name}'", f"{{model: {{path: './two/{name}'}}}}")
    done = merge(recipe, out=f"out {name[:50]}")
    assert (done.code, len(done.lines)) == (0, 1), done.err


def test_paths_are_relative_to_where_the_program_runs(models, monkeypatch):
    Path("recipes").mkdir()
    Path("recipes/r.yml").write_text(GOOD)
    assert run("merge", "recipes/r.yml", "recipes/out").code == 0
    monkeypatch.chdir(models / "recipes")
    assert mistakes(run("merge", "r.yml", "out2")) == [
        f"models[{i}] (line {i + 3}): ./{name} does not exist (looks like a local path)"
        for i, name in enumerate("AB")
    ]
    Path("r.yml").write_text(linear("../A", "../B"))
    assert run("merge", "r.yml", "out2").code == 0


def test_home_is_known_where_no_shell_has_seen_it(models, tmp_path):
    model(tmp_path / "home" / "models" / "C")
    (tmp_path / "home" / "r.yml").write_text(linear("~/models/C", "./A"))
    assert run("merge", "~/r.yml", "~/out", "--quiet").code == 0
    assert (tmp_path / "home" / "out" / "config.json").is_file()
    assert not Path("~").exists()


def test_the_same_model_twice_counts_twice(models):
    done = merge(linear("./A", "./A"))
    assert done.lines[0] == (
        "warning: models[1].model (line 4): ./A is also models[0]; both entries count"
    )
    ours, theirs = load_file("out/model.safetensors"), load_file("A/model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_single_files_are_models_too(models):
    done = merge(linear("./A/model.safetensors", "./B/model.safetensors"))
    assert (done.code, len(done.lines)) == (0, 1)
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "README.md",
        "mergekit_config.yml",
        "model.safetensors",
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_a_chain_leaves_its_earlier_results_only_when_asked(keep, models):
    recipe = f"name: first\n{GOOD}---\n{linear('first', './base')}"
    done = merge(recipe, *(["--keep-intermediates"] if keep else []))
    assert (done.code, len(done.lines)) == (0, 1)
    found = {p.name for p in models.iterdir()} - {"A", "B", "base", "r.yml", "out"}
    assert found == ({".out.chain"} if keep else set())
    assert merge(recipe, "--overwrite").code == 0

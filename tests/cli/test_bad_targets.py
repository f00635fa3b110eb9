"""Targets and options that cannot do: told before anything is written or removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mergeloom
from mergeloom.output import directory

from .models import linear, model
from .program import everything, merge, mistakes, refused, run

GOOD = linear("./A", "./B")
NOT_EMPTY = (
    "is not empty. Choose another folder, or use --overwrite to replace it when the merge is done."
)


def written(folder: Path, name: str = "x") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")


# --- folders that are in use ---------------------------------------------------------------------

TAKEN = {
    "a folder with a file": (lambda: written(Path("out")), "out", f"out: {NOT_EMPTY}"),
    "the current folder": (lambda: None, ".", f".: {NOT_EMPTY}"),
    "the folder above": (lambda: None, "A/..", f"A/..: {NOT_EMPTY}"),
    "a file": (
        lambda: Path("out").touch(),
        "out",
        "out: is a file. Give a folder for the merged model.",
    ),
    "a device": (
        lambda: None,
        "/dev/null",
        "/dev/null: is not a folder. Give a folder for the merged model.",
    ),
    "below a file": (
        lambda: Path("f").touch(),
        "f/deep/out",
        "f/deep/out: HERE/f is a file, so no folder can be made in it",
    ),
    "an input": (lambda: None, "A", f"A: {NOT_EMPTY}"),
    "too long": (
        lambda: None,
        "x" * 300,
        f"{'x' * 300}: cannot be a folder: File name too long. Choose another name.",
    ),
    "a link to itself": (
        lambda: Path("out").symlink_to("out"),
        "out",
        "out: cannot be a folder: Symlink loop from 'HERE/out'. Choose another name.",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_target_that_is_taken(case, models):
    prepare, out, message = TAKEN[case]
    prepare()
    said = refused(GOOD, out=out)
    assert said == [message]


HOLDS = "would be replaced, and it holds {}, which the merge reads. Choose another folder."
IN_IT = "would be replaced by the finished folder, and you are in it. Name a new folder: {}"
DANGER = {
    "an input": ("A", "A: " + HOLDS.format("./A")),
    "an input, with a slash": ("./B/", "B: " + HOLDS.format("./B")),
    "an input, by a link": ("link", "link: " + HOLDS.format("./A")),
    "a folder of inputs": ("more", "more: " + HOLDS.format("./more/C, ./more/D")),
    "the recipe's folder": ("recipes", "recipes: " + HOLDS.format("the recipe recipes/r.yml")),
    "the current folder": (".", ".: " + IN_IT.format("merged")),
    "the folder above": ("..", "..: " + IN_IT.format("../merged")),
    "the root": (
        "/",
        "/: is where a disk is mounted, so the finished folder cannot take its place. "
        "Name a folder inside it: /merged",
    ),
}


@pytest.mark.parametrize("case", DANGER)
def test_overwriting_never_removes_what_the_merge_needs(case, models):
    out, message = DANGER[case]
    Path("link").symlink_to("A")
    model(models / "more" / "C")
    model(models / "more" / "D")
    recipe = Path("recipes/r.yml")
    written(recipe.parent)
    recipe.write_text(linear("./A", "./B", "./more/C", "./more/D"))
    before = everything(models.parent)
    assert mistakes(run("merge", recipe, out, "--overwrite")) == [message]
    assert everything(models.parent) == before


def test_target_and_recipe_are_told_together(models):
    written(Path("out"))
    assert refused(linear("./A", "./no") + "dtype: bfloat\n", "--timings", "no/t.json") == [
        f"out: {NOT_EMPTY}",
        "--timings: the folder no does not exist",
        "dtype (line 5): unknown dtype 'bfloat', did you mean bfloat16?",
    ]


def test_overwriting_a_folder_replaces_all_of_it(models):
    written(Path("out"))
    assert merge(GOOD, "--overwrite").code == 0
    assert not Path("out/x").exists()
    assert sorted(p.name for p in models.iterdir()) == ["A", "B", "base", "out", "r.yml"]


# --- odd but good targets ------------------------------------------------------------------------


def link_to(target: str) -> None:
    Path("out").symlink_to(target)


ODD = {
    "a slash at the end": (lambda: None, "out/", "out"),
    "folders above it": (lambda: None, "a/b/out", "a/b/out"),
    "an empty folder": (lambda: Path("out").mkdir(), "out", "out"),
    "spaces and emoji": (lambda: None, "my out 🤖", "my out 🤖"),
    "a dot": (lambda: Path("sub").mkdir(), "sub/.", "sub"),
    "a link to a folder": (lambda: (Path("real").mkdir(), link_to("real")), "out", "real"),
    "a link to nowhere": (lambda: link_to("real"), "out", "real"),
    "home": (lambda: None, "~/out", "../home/out"),
    "inside an input": (lambda: None, "A/merged", "A/merged"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_target_is_used(case, models):
    prepare, out, where = ODD[case]
    prepare()
    before = everything(models)
    done = merge(GOOD, out=out)
    assert (done.code, done.out) == (0, "")
    files = {"README.md", "config.json", "mergekit_config.yml", "model.safetensors"}
    assert {p.name for p in Path(where).iterdir()} == files
    after = everything(models)
    assert all(after[name] == before[name] for name in before if not name.startswith("out"))
    hidden = [n for n in after if Path(n).name.startswith(".")]
    assert hidden == []


# --- the disk ------------------------------------------------------------------------------------


def test_no_number_of_less_than_one_in_python(models):
    for given in ({"threads": 0}, {"threads": -2}, {"max_memory": 0}, {"max_memory": -5}):
        ((name, number),) = given.items()
        with pytest.raises(mergeloom.MergeError, match=rf"--{name.replace('_', '-')}: {number} "):
            mergeloom.merge(GOOD, "out", **given)
    with pytest.raises(mergeloom.RecipeError, match="--out-shard-size: 0 is less than one"):
        mergeloom.plan(GOOD, mergeloom.Options(out_shard_size=0))
    assert not Path("out").exists()


def test_a_full_disk(models, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    assert refused(GOOD) == [
        "out: the output needs 16.8 MB, 6.8 MB more than the disk has free. "
        "Free some space or choose another disk."
    ]


def test_a_folder_that_may_not_be_written(models, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "ro")
    Path("ro").mkdir()
    message = "HERE/ro cannot be written to. Check its permissions."
    assert refused(GOOD, out="ro/out") == [f"ro/out: {message}"]


def test_another_merge_is_writing_the_same_target(models):
    with directory.building(Path("out")):
        said = mistakes(merge(GOOD))
    assert said == ["out: another merge is writing it right now. Wait for it to end."]
    assert not Path("out").exists()


def test_a_folder_in_the_way_of_the_partial_output(models):
    Path(".out.partial").write_text("mine")
    assert refused(GOOD) == ["HERE/.out.partial: cannot be made: File exists"]


# --- options -------------------------------------------------------------------------------------

SIZE = "is not a size; write 5GB, 5GiB, 500MB or a number of bytes"
CPU = (
    f"is not available here; torch {torch.__version__} sees: cpu. "
    "Use --device cpu, or install a torch build for your accelerator."
)
OPTIONS = {
    ("--out-shard-size", "5XB"): f"--out-shard-size: '5XB' {SIZE}. SEE",
    ("--out-shard-size", "-1"): f"--out-shard-size: '-1' {SIZE}. SEE",
    ("--out-shard-size", ""): f"--out-shard-size: '' {SIZE}. SEE",
    ("--out-shard-size", "0"): "--out-shard-size: '0' is less than one byte. SEE",
    ("--max-memory", "lots"): f"--max-memory: 'lots' {SIZE}. SEE",
    ("--threads", "0"): "--threads: 0 is not in the range x>=1. SEE",
    ("--seed", "x"): "--seed: 'x' is not a valid integer. SEE",
    ("--timings", "A"): "--timings: File 'A' is a directory. SEE",
    ("--timings", "no/t.json"): "--timings: the folder no does not exist",
    ("--timing",): "no such option '--timing'. Did you mean '--timings'? SEE",
    ("more",): "got unexpected extra argument (more). SEE",
    ("--device", "gpu"): f"--device: gpu {CPU}",
    ("--device", "CUDA"): f"--device: CUDA {CPU}",
    ("--device", "meta"): f"--device: meta {CPU}",
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_an_option_that_cannot_do(options, models):
    said = refused(GOOD, *options)
    assert [s.partition(" See ")[0] for s in said] == [
        OPTIONS[options].removesuffix(" SEE").strip() if " SEE" in OPTIONS[options] else s
        for s in [OPTIONS[options]]
    ]
    assert ("merge --help." in said[0]) is OPTIONS[options].endswith(" SEE")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_where_there_is_none(device, models):
    assert refused(GOOD, "--device", device) == [f"--device: {device} {CPU}"]


def test_too_little_memory_says_how_much_is_enough(models):
    said = refused(GOOD, "--max-memory", "50MB")
    start = "--max-memory: 50,000,000 bytes is too little for this merge. Allow at least "
    assert len(said) == 1
    assert said[0].startswith(start)
    enough = said[0].removeprefix(start).rstrip(".")
    assert merge(GOOD, "--max-memory", enough).code == 0


@pytest.mark.parametrize("size", ["5GB", "5 GiB", "0.5B", "1000", "999999999999T"])
def test_sizes_as_people_write_them(size, models):
    assert merge(GOOD, "--out-shard-size", size).code == 0


def test_huge_numbers_are_taken(models):
    assert merge(GOOD, "--seed", 10**30, "--threads", 500).code == 0


# --- the program itself --------------------------------------------------------------------------


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mergeloom", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_program_exits_with_2_and_one_line(models):
    Path("r.yml").write_text(linear("./A", "./bse"))
    done = program("merge", "r.yml", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: models[1] (line 4): ./bse does not exist (looks like a local path). "
        "Nearest: ./base\n"
    )
    assert sorted(p.name for p in models.iterdir()) == ["A", "B", "base", "r.yml"]


def test_a_reader_that_goes_away_is_no_defect(models):
    Path("r.yml").write_text(GOOD)
    command = [sys.executable, "-m", "mergeloom", "plan", "r.yml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""


def test_the_program_exits_with_0(models):
    Path("r.yml").write_text(GOOD)
    done = program("merge", "r.yml", "out", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("out/model.safetensors").is_file()

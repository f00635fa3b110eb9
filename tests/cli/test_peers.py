"""``mergekit-yaml`` and ``mergekitty-yaml``: every flag of theirs, and the lines of notebooks."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import torch
from safetensors import safe_open

from mergeloom.cli.peers import mergekit_command, mergekitty_command

from .models import linear, model
from .program import Run, everything, mistakes, run

NOTEBOOK = (
    "config.yaml merge --copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle".split()
)

# The flags of both programs, as their references list them; a slash stands for two switches.
SWITCHES = """allow-crimes clone-tensors trust-remote-code lazy-unpickle copy-tokenizer
    write-model-card safe-serialization quiet""".split()
VALUES = {
    "transformers-cache": "cache",
    "lora-merge-cache": "cache",
    "out-shard-size": "5B",
    "random-seed": "7",
}
MERGEKIT_SWITCHES = """unsafe-truncate-embeddings low-cpu-memory read-to-gpu multi-gpu
    async-write""".split()
MERGEKIT_VALUES = {
    "lora-merge-dtype": "float16",
    "device": "cpu",
    "write-threads": "2",
    "num-threads": "2",
}
MERGEKITTY_VALUES = {
    "compute-device": "cpu",
    "storage-device": "cuda",
    "executor": "parallel",
}


def forms(switches: list[str], values: dict[str, str]) -> list[tuple[str, ...]]:
    both = [(f"--{no}{name}",) for name in switches for no in ("", "no-")]
    return both + [(f"--{name}", value) for name, value in values.items()]


MERGEKIT = [
    *forms(SWITCHES + MERGEKIT_SWITCHES, VALUES | MERGEKIT_VALUES),
    ("--no-cuda",),
    ("--device", "auto"),
    ("-j", "1"),
    ("-v",),
    ("-v", "-v"),
    ("-vv",),
]
MERGEKITTY = [
    *forms([*SWITCHES, "load-to-compute"], VALUES | MERGEKITTY_VALUES),
    ("--executor", "single"),
    ("--storage-device", "cpu"),
    ("-v",),
    ("--verbose",),
]
IGNORED = """clone-tensors trust-remote-code lazy-unpickle low-cpu-memory read-to-gpu
    multi-gpu async-write lora-merge-cache lora-merge-dtype write-threads storage-device
    load-to-compute executor no-safe-serialization""".split()


@pytest.fixture
def config(models) -> Path:
    path = models / "config.yaml"
    path.write_text(linear("./A", "./B"))
    return path


@pytest.mark.parametrize("flags", MERGEKIT, ids=" ".join)
def test_every_flag_of_mergekit_yaml(flags, config):
    check_flag(run("config.yaml", "out", *flags, command=mergekit_command), flags)


@pytest.mark.parametrize("flags", MERGEKITTY, ids=" ".join)
def test_every_flag_of_mergekitty_yaml(flags, config):
    check_flag(run("config.yaml", "out", *flags, command=mergekitty_command), flags)


def check_flag(done: Run, flags: tuple[str, ...]) -> None:
    """It merges; a flag without a meaning is named once, with the reason; others are not."""
    assert (done.code, done.out) == (0, "")
    assert Path("out/model.safetensors").is_file()
    said = [line for line in done.lines if "has no effect" in line]
    ignored = flags[0].removeprefix("--") in IGNORED
    assert len(said) == ignored
    if ignored:
        assert said[0].startswith(f"{flags[0]} has no effect: ")
    assert Path("out/README.md").exists() is (flags[0] != "--no-write-model-card")
    assert ("peak memory" in done.err) is (flags[0] in ("-v", "-vv", "--verbose"))
    if flags[0] == "--quiet":
        assert done.err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (mergekit_command, ["--cuda"]),
        (mergekit_command, ["--gpu-rich"]),
        (mergekit_command, ["--device", "cuda"]),
        (mergekitty_command, ["--compute-device", "cuda"]),
    ],
)
def test_a_gpu_that_is_not_there_is_told_before_anything_is_written(command, flags, config):
    done = run("config.yaml", "out", *flags, command=command)
    (said,) = mistakes(done)
    assert (done.code, said.split(";")[0]) == (
        2,
        "--device: cuda is not available here",
    )
    assert sorted(p.name for p in config.parent.iterdir()) == ["A", "B", "base", "config.yaml"]


def test_a_flag_of_neither(config):
    done = run("config.yaml", "out", "--cuda", command=mergekitty_command)
    (said,) = mistakes(done)
    assert (done.code, said.partition(" See")[0]) == (2, "no such option '--cuda'.")


# --- notebooks -----------------------------------------------------------------------------------


def notebook() -> Run:
    return run(*NOTEBOOK, command=mergekit_command)


def test_the_line_of_every_notebook_runs_twice(config):
    first = notebook()
    assert (first.code, first.out) == (0, "")
    assert first.lines[:-1] == [
        "--lazy-unpickle has no effect: pickles are always read tensor by tensor",
    ]
    assert first.lines[-1].startswith("merge: 31 tensors, 4.6 kB in ")
    config.write_text(linear("./A", "./B", "./base"))
    second = notebook()
    assert second.code == 0
    assert "./base" in Path("merge/mergekit_config.yml").read_text()
    assert [p.name for p in config.parent.iterdir() if p.name.startswith(".")] == []


def test_a_merge_without_a_card_is_known_as_our_own_too(config):
    for _ in range(2):
        assert (
            run("config.yaml", "out", "--no-write-model-card", command=mergekit_command).code == 0
        )


NOT_EMPTY = "is not empty. Choose another folder, or use --overwrite to replace it when the merge"


@pytest.mark.parametrize("content", ["notes", "model", "card"])
def test_a_foreign_folder_is_never_replaced(content, config):
    folder = config.parent / "merge"
    folder.mkdir()
    if content == "notes":
        (folder / "thesis.txt").write_text("years of work")
    else:
        model(folder)
    if content == "card":  # models on the hub carry the recipe they were merged by
        (folder / "mergekit_config.yml").write_text("models: []")
    before = everything(config.parent.parent)
    done = notebook()
    assert done.code == 2
    assert done.lines[-1].startswith(f"error: merge: {NOT_EMPTY}")
    assert everything(config.parent.parent) == before


def test_an_earlier_merge_that_is_an_input_is_never_replaced(config):
    assert notebook().code == 0
    config.write_text(linear("./merge", "./B"))
    before = everything(config.parent.parent)
    done = notebook()
    assert done.code == 2
    assert done.lines[-1] == (
        "error: merge: would be replaced, and it holds ./merge, which the merge reads. "
        "Choose another folder."
    )
    assert everything(config.parent.parent) == before


def test_overwrite_and_lenient_are_ours(config):
    (config.parent / "merge").mkdir()
    (config.parent / "merge" / "x").touch()
    config.write_text(linear("./A", "./B", more="dtpe: bfloat16\n"))
    assert run(*NOTEBOOK, "--overwrite", command=mergekit_command).code == 2
    assert run(*NOTEBOOK, "--overwrite", "--lenient", command=mergekit_command).code == 0


def test_what_the_flags_do(config):
    flags = "--random-seed 5 --out-shard-size 2K --no-write-model-card -q"
    flags = flags.replace("-q", "--quiet")
    done = run("config.yaml", "out", *flags.split(), command=mergekitty_command)
    assert (done.code, done.err) == (0, "")
    shards = sorted(Path("out").glob("*.safetensors"))
    assert len(shards) > 1
    assert not Path("out/README.md").exists()
    with safe_open(shards[0], "pt") as file:
        assert json.loads(file.metadata()["mergeloom"])["seed"] == 5


def test_mistakes_are_told_as_by_the_main_program(config):
    config.write_text(linear("./A", "./bse", more="dtype: bf17\n"))
    done = run("config.yaml", "out", "--quiet", command=mergekit_command)
    assert done.code == 2
    assert mistakes(done) == ["dtype (line 5): unknown dtype 'bf17', did you mean bf16?"]
    assert mistakes(run("config.yml", "out", command=mergekit_command)) == [
        "config.yml: does not exist. Did you mean config.yaml?"
    ]


@pytest.mark.parametrize("command", [mergekit_command, mergekitty_command])
def test_the_help_says_what_every_flag_does(command):
    named = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.opts for option in named if not option.help] == []

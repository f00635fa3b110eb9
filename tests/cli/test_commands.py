"""The commands that print: help, check, plan, methods, explain, schema."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import textwrap
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from mergeloom import load_recipe
from mergeloom.cli.errors import run_command
from mergeloom.cli.main import mergeloom
from mergeloom.cli.peers import mergekit_command, mergekitty_command
from mergeloom.errors import Problems
from mergeloom.methods import METHODS

from .models import linear, method
from .program import everything, mistakes, run

GOOD = linear("./A", "./B")
SLERP = method(
    "slerp",
    "./A",
    "./B",
    more="base_model: ./A\nparameters:\n  t:\n    - {filter: self_attn, value: [0, 1]}\n"
    "    - value: 0.5\n",
)


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_help_names_every_command(flag):
    done = run(flag)
    assert (done.code, done.err) == (0, "")
    for name, command in mergeloom.commands.items():
        assert f"  {name} " in done.out
        assert command.get_short_help_str(limit=30).rstrip(".").split("  ")[0][:20] in done.out


def test_no_command_prints_the_help():
    done = run()
    assert done.code == 2
    assert "Usage: " in done.err + done.out
    assert "  merge " in done.err + done.out


@pytest.mark.parametrize("name", mergeloom.commands)
def test_the_help_of_a_command_explains_every_option(name):
    command = mergeloom.commands[name]
    done = run(name, "--help")
    assert (done.code, done.err) == (0, "")
    words = " ".join(done.out.split())
    assert command.help
    assert " ".join(command.help.split()).split(". ")[0] in words
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert parameter.human_readable_name.upper() in done.out
            continue
        assert isinstance(parameter, click.Option)
        assert parameter.help, f"{parameter.name} has no help"
        assert parameter.help.split(". ")[0].rstrip(".") in words
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            assert spelling in done.out


@pytest.mark.parametrize("command", [mergekit_command, mergekitty_command])
def test_the_help_of_the_peers_scripts_names_every_flag(command):
    done = run("--help", command=command)
    assert (done.code, done.err) == (0, "")
    for parameter in command.params:
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            assert spelling.upper() in done.out.upper()


def test_the_version_is_told():
    done = run("--version")
    assert done.code == 0
    assert done.out.rstrip().endswith("version 0.1.0")


def test_a_mistyped_command_gets_the_nearest():
    (said,) = mistakes(run("merg", "r.yml"))
    assert said.startswith("no such command 'merg'. Did you mean 'merge'? See ")
    (said,) = mistakes(run("merge"))
    assert said.startswith("missing argument 'RECIPE'. See ")


# --- check ---------------------------------------------------------------------------------------


def test_check_says_nothing_of_a_good_recipe_and_writes_nothing(models):
    Path("r.yml").write_text(GOOD)
    before = everything(models.parent)
    done = run("check", "r.yml")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert everything(models.parent) == before


def test_check_prints_errors_and_warnings_and_exits_with_2_only_for_errors(models):
    Path("r.yml").write_text(GOOD + "parameters: {normalise: 1}\n")
    warning = (
        "warning: parameters.normalise (line 5): no method knows the parameter normalise, "
        "did you mean normalize?"
    )
    done = run("check", "r.yml")
    assert (done.code, done.out, done.lines) == (0, "", [warning])
    Path("r.yml").write_text(linear("./A", "./no", more="parameters: {normalise: 1}"))
    done = run("check", "r.yml")
    assert (done.code, done.out) == (2, "")
    assert done.lines == [
        warning,
        "error: models[1] (line 4): ./no does not exist (looks like a local path)",
    ]


# --- plan ----------------------------------------------------------------------------------------


def test_plan_prints_every_tensor_and_the_totals(models):
    Path("r.yml").write_text(SLERP)
    before = everything(models.parent)
    done = run("plan", "r.yml")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "model.embed_tokens.weight  bfloat16[12, 8]  slerp of ./A, ./B"
    assert lines[30] == "lm_head.weight  bfloat16[12, 8]  slerp of ./A, ./B"
    assert lines[32:35] == [
        "filter 'self_attn' at parameters.t[0]: 16 of 31 tensors",
        "31 tensors, 2,280 parameters; config and side files of ./A",
        # every input is read twice: once for the angle between the models
        "reads 18.2 kB, writes 4.6 kB in 1 file",
    ]
    assert lines[35].startswith("peak memory at most ")
    assert everything(models.parent) == before


def test_plan_shows_the_parameters_of_every_tensor(models):
    Path("r.yml").write_text(SLERP)
    lines = run("plan", "r.yml", "--show-parameters").out.splitlines()
    shown = {a.split("  ")[0]: b.strip() for a, b in zip(lines[:62:2], lines[1:62:2], strict=True)}
    flags = "nuslerp_flatten=true nuslerp_row_wise=false"
    assert shown["model.embed_tokens.weight"] == f"at 0.000: t=0.5 {flags}"
    assert shown["model.layers.1.self_attn.q_proj.weight"] == f"at 0.333: t=0.333333 {flags}"
    assert shown["model.layers.3.self_attn.q_proj.weight"] == f"at 1.000: t=1 {flags}"
    Path("r.yml").write_text(GOOD)
    lines = run("plan", "r.yml", "--show-parameters").out.splitlines()
    assert lines[1] == "    at 0.000: normalize=true ./A(weight=0.5) ./B(weight=0.5)"


def test_plan_as_json(models):
    Path("r.yml").write_text(SLERP.replace("./B", "./B") + "seed: 1\n")
    assert run("plan", "r.yml", "--json").code == 2
    Path("r.yml").write_text(SLERP)
    done = run("plan", "r.yml", "--json", "--seed", 7, "--out-shard-size", "2KB")
    assert (done.code, done.err) == (0, "")
    plan = json.loads(done.out)
    assert set(plan) >= set(
        """name method donor digest seed bytes_read bytes_written peak_memory jobs shards
        side_files filters unused warnings chain""".split()
    )
    assert (plan["method"], plan["donor"], plan["seed"]) == ("slerp", "./A", 7)
    assert (plan["bytes_read"], plan["bytes_written"]) == (18240, 4560)
    assert sum(shard["bytes"] for shard in plan["shards"]) == 4560
    assert plan["filters"] == [
        {"where": "parameters.t[0]", "filter": "self_attn", "matched": 16, "asked": 31}
    ]
    assert len(plan["jobs"]) == 31
    assert plan["jobs"][0] == {
        "name": "model.embed_tokens.weight",
        "dtype": "bfloat16",
        "shape": [12, 8],
        "method": "slerp",
        "why": None,
        "position": 0.0,
        "parameters": {"t": 0.5, "nuslerp_flatten": True, "nuslerp_row_wise": False},
        "inputs": [
            {"model": "./A", "tensor": "model.embed_tokens.weight", "parameters": {}},
            {
                "model": "./B",
                "tensor": "model.embed_tokens.weight",
                "parameters": {"weight": None},
            },
        ],
    }


def test_plan_of_a_mistake_is_a_mistake(models):
    Path("r.yml").write_text(linear("./A", "./no"))
    for arguments in (["plan", "r.yml"], ["plan", "r.yml", "--json"]):
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")
        assert mistakes(done) == [
            "models[1] (line 4): ./no does not exist (looks like a local path)"
        ]


def test_plan_of_a_chain_shows_every_document(models):
    Path("r.yml").write_text(f"name: first\n{GOOD}---\n{linear('first', './base')}")
    done = run("plan", "r.yml")
    titles = [line for line in done.out.splitlines() if line.startswith("==")]
    assert (done.code, titles) == (0, ["== first (linear)", "== result (linear)"])
    (earlier,) = json.loads(run("plan", "r.yml", "--json").out)["chain"]
    assert (earlier["name"], earlier["donor"]) == ("first", "./A")


# --- methods, explain, schema --------------------------------------------------------------------


def test_methods_lists_each_with_a_sentence():
    done = run("methods")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(line.endswith(".") and len(line.split()) > 5 for line in lines)


def test_a_full_disk_behind_the_output_is_no_defect(capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    with contextlib.redirect_stdout(Full()), pytest.raises(SystemExit) as end:
        run_command(mergeloom, ["methods"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no space is left where the output goes\n"


@pytest.mark.parametrize("name", METHODS)
def test_explain_tells_all_of_a_method_and_its_recipe_loads(name):
    declared = METHODS[name]
    done = run("explain", name)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{name} ({declared.title})\n")
    for text in (declared.summary, declared.use, declared.reference):
        assert text in done.out
    said = " ".join(done.out.split())
    for text in (declared.formula_text, declared.differs):
        assert text.strip()
        assert " ".join(text.split()) in said
    for parameter in declared.parameters:
        assert f"\n  {parameter.name}: {parameter.kind}" in done.out
        assert parameter.help in done.out
    example = textwrap.dedent(done.out.partition("A recipe:\n")[2])
    recipe = load_recipe(example)
    assert (recipe.merge_method, recipe.warnings) == (name, ())


def test_explain_of_an_unknown_method_names_the_nearest():
    known = ", ".join(METHODS)
    assert mistakes(run("explain", "lineer")) == [
        f"unknown method 'lineer', did you mean linear? The methods are {known}"
    ]
    assert mistakes(run("explain", "nope")) == [f"unknown method 'nope'; the methods are {known}"]
    assert run("explain", "nope").code == 2


def test_the_schema_accepts_what_the_program_accepts():
    done = run("schema")
    assert (done.code, done.err) == (0, "")
    schema = json.loads(done.out)
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    check = kind(schema)
    for text in (GOOD, SLERP, *(declared.example for declared in METHODS.values())):
        load_recipe(text)
        check.validate(yaml.safe_load(text))
    for wrong in ("merge_method: linear\nmodels: 3\n", "models: [{model: A}]\n"):
        assert not check.is_valid(yaml.safe_load(wrong))


def test_problems_say_their_place_their_line_and_the_next_step():
    problems = Problems()
    problems.error("dtype", "unknown", "Use bfloat16.", 3)
    problems.error("dtype", "unknown", "Use bfloat16.", 3)
    problems.error("", "empty", line=2)
    assert [str(p) for p in problems.errors] == [
        "dtype (line 3): unknown. Use bfloat16.",
        "line 2: empty",
    ]

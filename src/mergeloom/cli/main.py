"""``mergeloom``: merge, plan, check, inspect, methods, explain, schema, demo."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeloom._version import __version__
from mergeloom.cli.errors import run_program, tell
from mergeloom.cli.sizes import Size, UserPath, show_size
from mergeloom.errors import CheckpointError, MergeloomError, OutputError, Problem, Problems

if TYPE_CHECKING:
    from mergeloom.api import Merged
    from mergeloom.planning import Options, Plan

RECIPE = click.argument("recipe", type=UserPath())


def main() -> None:
    """Entry point of the program."""
    run_program(mergeloom)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def mergeloom() -> None:
    """Merge pre-trained language models in weight space."""


def _load_plugins(context: click.Context, parameter: click.Parameter, paths: tuple[Path]) -> None:
    """Before anything asks for a method, so that its name is known."""
    del context, parameter
    if paths:
        from mergeloom.methods.registry import load_plugin

        for path in paths:
            load_plugin(path)


PLUGIN = click.option(
    "--plugin",
    type=click.Path(path_type=Path),
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_load_plugins,
    help="A Python file with merge methods of your own; it is run.",
)


ARCH_FILE = click.option("--arch-file", type=UserPath(),
                         help="YAML that says what the rules cannot tell of a model.")  # fmt: skip


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that decide what is merged: ``verify``, and the fields of ``Options``."""
    for option in reversed(
        [
            click.option("--out-shard-size", type=Size(), default="5GB", show_default=True,
                         help="Largest output file: 5GB, 5GiB, 500MB, or the peers' 5B."),
            click.option("--seed", type=int, default=0, show_default=True,
                         help="Seed of random methods; recorded in the output."),
            click.option("--lenient", is_flag=True,
                         help="Ignore unknown keys and idle filters with a warning."),
            click.option("--allow-crimes", is_flag=True,
                         help="Merge models of different kinds as far as their tensors match."),
            click.option("--unsafe-truncate-embeddings", is_flag=True,
                         help="Cut vocabulary tables to the smallest model's rows."),
            click.option("--copy-tokenizer/--no-copy-tokenizer", default=True, show_default=True,
                         help="Copy the base's tokenizer files."),
            click.option("--cache-dir", type=UserPath(),
                         help="Hugging Face cache to use."),
            ARCH_FILE,
            click.option("--cast-all", is_flag=True,
                         help="Let dtype also cast what is kept in float32 on purpose."),
            click.option("--verify", is_flag=True,
                         help="Let transformers check that the result will load."),
            PLUGIN,
            click.option("--intermediate-dir", "intermediates", type=UserPath(),
                         help="Where earlier documents of a chain put their results."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that change how it runs and not a byte of the result."""
    for option in reversed(
        [
            click.option("--threads", type=click.IntRange(min=1),
                         help="Workers; by default one for each core."),
            click.option("--max-memory", type=Size(), default="1GiB", show_default=True,
                         help="Memory the process may take: 512MB, 2GiB."),
            click.option("--device", default="cpu", show_default=True,
                         help="cpu, cuda, cuda:1, mps, xpu or auto."),
            click.option("--allow-nonfinite", is_flag=True,
                         help="Count NaN and infinity in the result instead of stopping."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@mergeloom.command()
@RECIPE
@click.argument("out", type=UserPath())
@plan_options
@run_options
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is not empty.")
@click.option("--keep-intermediates", is_flag=True, help="Keep the earlier documents' results.")
@click.option("--card/--no-card", default=True, show_default=True,
              help="Write README.md and mergekit_config.yml.")  # fmt: skip
@click.option("--timings", type=UserPath(dir_okay=False),
              help="Write seconds and bytes as JSON to this file.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print the plan first.")
def merge(recipe: Path, out: Path, **given: Any) -> None:
    """Merge the models of RECIPE into the folder OUT."""
    from mergeloom.planning import Options

    flags = {field.name: given.pop(field.name) for field in fields(Flags)}
    run_merge(recipe, out, Options(**given), Flags(**flags))


@dataclass(frozen=True)
class Flags:
    """What a merge is told besides the options of its plan; see ``merge --help``."""

    threads: int | None = None
    max_memory: int | None = None
    device: str = "cpu"
    allow_nonfinite: bool = False
    overwrite: bool = False
    keep_intermediates: bool = False
    card: bool = True
    verify: bool = False
    timings: Path | None = None
    quiet: bool = False
    verbose: bool = False


def run_merge(recipe: Path, out: Path, options: Options, flags: Flags) -> None:
    """Check, plan and run; shared with the peers' scripts."""
    from mergeloom.api import run_plan
    from mergeloom.cli.progress import showing
    from mergeloom.cli.report import plan_text

    started = time.perf_counter()
    planned = _planned_for(recipe, out, options, flags)
    # These import numpy, which a mistake need not wait for.
    from mergeloom.engine.kernels import missed_library
    from mergeloom.engine.memory import DEFAULT_MEMORY
    from mergeloom.engine.run import Settings

    if not flags.quiet and (missed := missed_library(planned, flags.device)):
        tell([missed], "warning")
    if flags.verbose and not flags.quiet:
        click.echo(plan_text(planned, show_parameters=True), err=True)
    total = sum(part.bytes_in for part in (*planned.chain, planned))
    with showing(total, quiet=flags.quiet) as progress:
        memory = flags.max_memory or DEFAULT_MEMORY
        done = run_plan(
            planned,
            out,
            Settings(flags.threads, memory, flags.device, flags.allow_nonfinite, progress),
            keep_intermediates=flags.keep_intermediates,
            card=flags.card,
        )
    seconds = time.perf_counter() - started
    if flags.timings:
        timings = {
            "engine_seconds": done.engine_seconds,
            "total_seconds": seconds,
            "bytes_read": total,
            "bytes_written": planned.bytes_out,
        }
        _write_timings(flags.timings, timings)
    if not flags.quiet:
        _tell_result(done, seconds)


def _planned_for(recipe: Path, out: Path, options: Options, flags: Flags) -> Plan:
    """The plan of a merge; what is wrong with its target and its recipe is told together."""
    from mergeloom.output.directory import check_apart, check_target

    blocked: list[Problem] = []
    try:
        check_target(out, overwrite=flags.overwrite)
        check_apart(out, [(f"the recipe {recipe}", recipe)])
    except OutputError as error:
        blocked += error.problems
    timings = flags.timings
    if timings and not (timings.parent.is_dir() or timings.is_relative_to(out)):
        blocked.append(Problem("--timings", f"the folder {timings.parent} does not exist"))
    try:
        planned = _plan(recipe, options, out, verify=flags.verify, quiet=flags.quiet)
    except MergeloomError as error:
        raise type(error)([*blocked, *error.problems]) from None
    if blocked:
        raise OutputError(blocked)
    return planned


def _write_timings(path: Path, timings: dict[str, float]) -> None:
    try:
        path.write_text(json.dumps(timings) + "\n")
    except OSError as error:
        problem = f"the merge is finished, but {path} cannot be written: {error.strerror}"
        raise OutputError(Problem("--timings", problem)) from error


def _tell_result(done: Merged, seconds: float) -> None:
    plan = done.plan
    resumed = f", {done.resumed} of them from an earlier run" if done.resumed else ""
    click.echo(
        f"{done.out}: {len(plan.jobs)} tensors{resumed}, {show_size(plan.bytes_out)} in "
        f"{seconds:.1f} s",
        err=True,
    )
    for name, count in done.nonfinite.items():
        are = "element is" if count == 1 else "elements are"
        click.echo(f"warning: {name}: {count} {are} NaN or infinite", err=True)
    by_note: dict[str, list[str]] = {}
    for name, notes in done.notes.items():
        for note in notes:
            by_note.setdefault(note, []).append(name)
    for note, names in by_note.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        click.echo(f"warning: {names[0]}{more}: {note}", err=True)


def _plan(
    recipe: Path,
    options: Options,
    out: Path = Path("out"),
    *,
    verify: bool,
    quiet: bool = False,
) -> Plan:
    """The plan of a recipe file, with its warnings told."""
    from mergeloom.methods import METHODS
    from mergeloom.planning import make_plan, merging_into
    from mergeloom.recipe import load_recipe

    problems = Problems()
    try:
        loaded = load_recipe(recipe, lenient=options.lenient, methods=METHODS, problems=problems)
    finally:
        if not quiet:
            tell(problems.warnings, "warning")
    planned = make_plan(loaded, merging_into(out, options))
    parts = (*planned.chain, planned)
    if not quiet:
        for part in parts:
            tell(part.warnings, "warning")
    if verify:
        from mergeloom.verify import verify as verified

        for part in parts:
            tell([Problem("--verify", sentence) for sentence in verified(part)], "warning")
    return planned


@mergeloom.command()
@RECIPE
@plan_options
@click.option("--show-parameters", is_flag=True, help="The resolved value for every tensor.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def plan(recipe: Path, show_parameters: bool, as_json: bool, verify: bool, **given: Any) -> None:
    """Print what merging RECIPE would do: every tensor, bytes, memory. Reads no weights."""
    from mergeloom.cli.report import plan_json, plan_text
    from mergeloom.planning import Options

    planned = _plan(recipe, Options(**given), verify=verify, quiet=as_json)
    if as_json:
        click.echo(json.dumps(plan_json(planned), indent=1))
    else:
        click.echo(plan_text(planned, show_parameters=show_parameters))


@mergeloom.command()
@RECIPE
@plan_options
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def tokenizer(recipe: Path, as_json: bool, verify: bool, **given: Any) -> None:
    """Print what merging RECIPE does to every model's tokens. Reads no weights."""
    from mergeloom.cli.report import vocabulary_json
    from mergeloom.cli.vocabulary_table import print_table
    from mergeloom.planning import Options

    options = Options(**given, describe_vocabulary=True)
    planned = _plan(recipe, options, verify=verify, quiet=as_json)
    if planned.vocabulary is None:
        raise CheckpointError(Problem(planned.donor, "has no tokenizer files"))
    if as_json:
        click.echo(json.dumps(vocabulary_json(planned.vocabulary), indent=1, ensure_ascii=False))
    else:
        print_table(planned.vocabulary)


@mergeloom.command()
@RECIPE
@plan_options
def check(recipe: Path, verify: bool, **given: Any) -> None:
    """Print every error and warning about RECIPE and its models, and nothing else."""
    from mergeloom.planning import Options

    _plan(recipe, Options(**given), verify=verify)


@mergeloom.command()
@click.argument("model")
@ARCH_FILE
@click.option("--cache-dir", type=UserPath(), help="Hugging Face cache to use.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def inspect(model: str, arch_file: Path | None, cache_dir: Path | None, as_json: bool) -> None:
    """What MODEL is made of: layers, tables, modules, dtypes. Reads no weights."""
    from mergeloom.cli.inspection import inspection_json, inspection_text
    from mergeloom.inspection import inspect as inspect_model

    found = inspect_model(model, arch_file=arch_file, cache_dir=cache_dir)
    tell(found.warnings, "warning")
    if as_json:
        click.echo(json.dumps(inspection_json(found), indent=1))
    else:
        click.echo(inspection_text(found))


@mergeloom.command()
@PLUGIN
def methods() -> None:
    """List the merge methods."""
    from mergeloom.methods import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        click.echo(f"{name:{width}}  {method.summary.partition('. ')[0].rstrip('.')}.")


@mergeloom.command()
@click.argument("method")
@PLUGIN
def explain(method: str) -> None:
    """What METHOD does, when to use it, its parameters and a recipe."""
    from mergeloom.cli.explain import explanation

    click.echo(explanation(method))


@mergeloom.command()
@PLUGIN
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from mergeloom.methods import METHODS
    from mergeloom.recipe import json_schema

    click.echo(json.dumps(json_schema(METHODS), indent=2))


@mergeloom.command()
@click.option("--out", type=UserPath(), help="Keep the merged models here.")
def demo(out: Path | None) -> None:
    """Merge three small models that come with the package, and score what came out."""
    import tempfile

    from mergeloom.demo.run import run

    if out:
        run(out, click.echo)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), click.echo)

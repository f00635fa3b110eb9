"""Recipe → plan. Reads headers and config files only; reports every mistake it can find."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mergeloom.architecture.rows import check_rows, read_rows
from mergeloom.errors import (
    CheckpointError,
    MergeloomError,
    Problem,
    Problems,
    RecipeError,
    nearest,
)
from mergeloom.methods import METHODS, Method
from mergeloom.planning import checks, kinds, vocabularies
from mergeloom.planning.files import check_pointers, output_config, side_files, warn_of_links
from mergeloom.planning.jobs import JobMaker, unused_tensors
from mergeloom.planning.layer_warnings import warn_layers
from mergeloom.planning.models import Models, open_models, relate
from mergeloom.planning.parameters import Resolver
from mergeloom.planning.plan import Options, Plan, VocabularySummary
from mergeloom.planning.restacking import check_restacked, without_extras
from mergeloom.planning.shards import shard, weights_stem
from mergeloom.planning.targets import Part, make_parts, make_targets
from mergeloom.planning.tokenizer_files import make_files
from mergeloom.types import Checkpoint, ModelReference, Recipe


def make_plan(recipe: Recipe, options: Options | None = None) -> Plan:
    """Decide everything about a merge before a weight is read.

    Args:
        recipe: as loaded.
        options: see :class:`Options`.

    Returns:
        The plan; for a chain of documents the last one's, with the others in ``chain``.

    Raises:
        RecipeError: the recipe asks for something the method or the models cannot do.
        CheckpointError: inputs are missing, damaged, or do not fit each other.
    """
    options = options or Options()
    if options.out_shard_size < 1:
        raise RecipeError(Problem("--out-shard-size", f"{options.out_shard_size} is less than one"))
    chain: list[Plan] = []
    failed: dict[str | None, MergeloomError] = {}
    for earlier in recipe.chain:
        try:
            part = _plan_one(earlier, options, tuple(chain), failed=failed)
        except MergeloomError as error:  # told together with those of the documents after it
            failed[earlier.name] = error
            continue
        name = f"{earlier.name}-{part.digest[:16]}".replace("/", "--")  # one folder, not two
        folder = (options.intermediates or Path()) / name
        chain.append(replace(part, folder=folder))
    try:
        planned = _plan_one(recipe, options, tuple(chain), failed=failed)
    except MergeloomError as error:
        failed[None] = error
    if failed:
        first, *_ = failed.values()
        every = [problem for error in failed.values() for problem in error.problems]
        raise type(first)(every) from first.__cause__
    return planned


def plan_opened(
    recipe: Recipe, opened: Mapping[ModelReference, Checkpoint], options: Options | None = None
) -> Plan:
    """Like :func:`make_plan` for checkpoints that are already open (or live in memory)."""
    return _plan_one(recipe, options or Options(), (), opened)


def _plan_one(
    recipe: Recipe,
    options: Options,
    chain: tuple[Plan, ...],
    opened: Mapping[ModelReference, Checkpoint] | None = None,
    failed: Container[str | None] = (),
) -> Plan:
    problems = Problems()
    with _order_of_file(recipe):
        method = _method(recipe)
        parts = make_parts(recipe, method)
        _check_parts(recipe, method, parts, problems)
        if opened is None:
            opened = open_models(recipe, options, chain, failed, problems)
        if opened is None:
            raise CheckpointError(problems.errors)
        problems.raise_errors(RecipeError)
        rows = read_rows(options.arch_file) if options.arch_file else ()
        models = relate(recipe, opened, rows, problems)
        problems.raise_errors(RecipeError)
        check_rows(rows, [model.layout for model in models.by_reference.values()])
        return _plan(recipe, method, parts, models, options, chain, problems)


@contextmanager
def _order_of_file(recipe: Recipe) -> Iterator[None]:
    """Mistakes are told with the lines of their places, in the order in which they are mended."""
    try:
        yield
    except MergeloomError as error:
        raise type(error)(_in_order(recipe, error.problems)) from error.__cause__


def _in_order(recipe: Recipe, problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems with lines first, by line; the others keep their order behind them."""
    placed = [replace(p, line=p.line or recipe.line(p.where)) for p in problems]
    return tuple(sorted(placed, key=lambda p: (p.line is None, p.line or 0)))


def _plan(
    recipe: Recipe,
    method: Method,
    parts: Sequence[tuple[Part, ...]],
    models: Models,
    options: Options,
    chain: tuple[Plan, ...],
    problems: Problems,
) -> Plan:
    every_part = [part for own in parts for part in own]
    checks.check_layers(recipe, models, every_part, problems)
    kinds.check_kinds(recipe, models, options, problems)
    targets, restacked = make_targets(recipe, parts, models, problems)
    problems.raise_errors(CheckpointError)
    decided = vocabularies.decide(recipe, models, options, problems)
    targets = without_extras(targets, restacked, models, problems)
    resolver = Resolver(recipe, method, problems)
    maker = JobMaker(recipe, method, models, options, problems, resolver, decided.common)
    jobs = maker.make(targets)
    resolver.report_missing()
    kinds.check_crimes(maker, jobs)
    checks.report_lacking(maker, _merged_whole(every_part))
    checks.report_shapes(maker)
    checks.report_sliced_shapes(maker, jobs, targets)
    checks.report_filters(recipe, resolver, options, problems)
    checks.report_patterns(recipe, jobs, [t.name for t in targets], options, problems)
    made = make_files(recipe, models, options, decided, problems)
    if not problems.errors:
        for rebuilt in restacked:
            check_restacked(rebuilt, models, problems)
    problems.raise_errors(_kind(maker))
    checks.warn_settings(models, problems)
    warn_layers(models, restacked, problems)
    checks.warn_unread(jobs, problems)
    unused = unused_tensors(models, maker.used, _merged_whole(every_part))
    checks.warn_left_out(maker, unused)
    copied = side_files(models, options, made)
    warn_of_links(copied, problems)
    check_pointers(copied, problems)
    problems.raise_errors(CheckpointError)
    return Plan(
        recipe=recipe,
        jobs=jobs,
        shards=shard(jobs, options.out_shard_size, weights_stem(models.donor.checkpoint.config)),
        config=output_config(recipe, models, jobs, restacked, maker.truncated, decided, problems),
        side_files=copied,
        inputs=tuple(model.checkpoint for model in models.by_reference.values()),
        donor=models.donor.checkpoint.label,
        seed=options.seed,
        filters=resolver.filters(),
        unused=unused,
        vocabulary=_summary(recipe, models, decided, options, problems),
        warnings=_in_order(recipe, problems.warnings),
        chain=chain,
    )


def _method(recipe: Recipe) -> Method:
    if recipe.merge_method in METHODS:
        return METHODS[recipe.merge_method]
    near = nearest(recipe.merge_method, METHODS)
    message = f"unknown method {recipe.merge_method!r}" + (f", {near}" if near else "")
    hint = f"Known methods: {', '.join(METHODS)}"
    raise RecipeError(Problem("merge_method", message, hint, recipe.line("merge_method")))


def _check_parts(
    recipe: Recipe, method: Method, parts: Sequence[tuple[Part, ...]], problems: Problems
) -> None:
    _warn_embed_slerp(recipe, problems)
    for own in parts:
        for part in own:
            checks.check_count(recipe, method, part, problems)


def _summary(
    recipe: Recipe,
    models: Models,
    decided: vocabularies.Decided,
    options: Options,
    problems: Problems,
) -> VocabularySummary | None:
    if decided.common is None and not options.describe_vocabulary:
        return None
    from mergeloom.planning.vocabulary_summary import summarize

    found = summarize(recipe, models, decided)
    settings = recipe.tokenizer
    if found and found.unknown and settings and settings.missing != "subword":
        where = settings.where
        problems.warn(
            where,
            f"no model has a row for {vocabularies.some(found.unknown)}: the output's is zero",
            "Give it a source under tokenizer: tokens:.",
            recipe.line(where),
        )
    return found


def _warn_embed_slerp(recipe: Recipe, problems: Problems) -> None:
    """A parameter of old recipes; embeddings are merged by the recipe's method like all else."""
    if "embed_slerp" in recipe.parameters:
        problems.warn("parameters.embed_slerp", "is ignored; tokenizer: says how rows are matched",
                      line=recipe.line("parameters.embed_slerp"))  # fmt: skip


def _kind(maker: JobMaker) -> type[MergeloomError]:
    return CheckpointError if maker.misshapen or maker.lacking else RecipeError


def _merged_whole(parts: Sequence[Part]) -> tuple[ModelReference, ...]:
    """The models that are merged from end to end, whose every tensor should find a use."""
    found = [entry.model for part in parts if not part.is_slice for entry in part.inputs]
    return tuple(dict.fromkeys(found))


def default_intermediates(out: Path) -> Path:
    """Where a chain keeps the results of earlier documents: beside the output, hidden."""
    return out.parent / f".{out.name}.chain"


def merging_into(out: Path, options: Options) -> Options:
    """The options with a place for a chain's earlier results, where none was chosen."""
    return replace(options, intermediates=options.intermediates or default_intermediates(out))

"""A plan in words, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from mergeloom.cli.sizes import show_size
from mergeloom.engine.memory import DEFAULT_MEMORY, memory_of
from mergeloom.engine.sizes import default_threads
from mergeloom.planning import Job, Plan, VocabularySummary
from mergeloom.types import DTYPES, Scalar


def plan_text(plan: Plan, *, show_parameters: bool) -> str:
    """The whole plan: every job, then totals, filters and the chain before it."""
    lines: list[str] = []
    for part in (*plan.chain, plan):
        if plan.chain:
            lines.append(f"== {part.recipe.name or 'result'} ({part.recipe.merge_method})")
        lines += [_job(job, show_parameters) for job in part.jobs]
        lines += ["", *_filters(part), *_totals(part), ""]
    if plan.chain:
        lines += [f"all documents together need {show_size(plan.disk)} of disk", ""]
    return "\n".join(lines)


def _job(job: Job, show_parameters: bool) -> str:
    sources = ", ".join(
        i.model if i.tensor == job.name else f"{i.model}:{i.tensor}" for i in job.inputs
    )
    what = job.method or f"copy ({job.why})"
    line = f"{job.name}  {DTYPES[job.dtype].torch_name}{list(job.shape)}  {what} of {sources}"
    if show_parameters and job.method:
        shared = value_text(job.parameters)
        values = [(i.model, value_text(i.parameters)) for i in job.inputs]
        own = [f"{model}({text})" for model, text in values if text]
        line += f"\n    at {job.position:.3f}: {' '.join(filter(None, [shared, *own]))}"
    return line


def value_text(values: Mapping[str, Scalar | None]) -> str:
    """``weight=0.5 normalize=true``; absent values are left out."""
    return " ".join(f"{k}={_short(v)}" for k, v in values.items() if v is not None)


def _short(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def _filters(plan: Plan) -> Iterator[str]:
    for use in plan.filters:
        yield f"filter {use.filter!r} at {use.where}: {use.matched} of {use.asked} tensors"


def _totals(plan: Plan) -> Iterator[str]:
    if plan.vocabulary:
        yield from _vocabulary(plan.vocabulary)
    threads, peak = _peak(plan)
    sizes = f"{len(plan.jobs)} tensors, {plan.parameter_count:,} parameters"
    yield f"{sizes}; config and side files of {plan.donor}"
    yield f"reads {show_size(plan.bytes_in)}, writes {show_size(plan.bytes_out)} in " + (
        f"{len(plan.shards)} files" if len(plan.shards) > 1 else "1 file"
    )
    workers = "1 thread" if threads == 1 else f"{threads} threads"
    yield f"peak memory at most {show_size(peak)} with {workers}"


def _peak(plan: Plan) -> tuple[int, int]:
    """How many threads a merge has unless told otherwise, and the bytes it takes at most."""
    memory = memory_of(plan)
    threads = max(1, memory.affordable(default_threads(), DEFAULT_MEMORY))
    return threads, memory.peak(threads)


def _vocabulary(found: VocabularySummary) -> Iterator[str]:
    yield f"vocabulary of {found.source}: {found.tokens:,} tokens in {found.rows:,} rows"
    for model in found.models:
        parts = [f"{model.own:,} rows of its own"]
        for count, what in (
            (model.taken, "of other models"),
            (model.averaged, "averaged"),
            (model.zero, "zero"),
            (model.padded, "padding"),
        ):
            parts += [f"{count:,} {what}"] if count else []
        if model.adds:
            parts.append(f"adds {len(model.adds):,} tokens")
        yield f"  {model.model}: {', '.join(parts)}"


def vocabulary_json(found: VocabularySummary) -> dict[str, Any]:
    """The table of ``mergeloom tokenizer`` for programs."""
    return asdict(found)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything :func:`plan_text` says, for programs."""
    return {
        "name": plan.recipe.name,
        "method": plan.recipe.merge_method,
        "donor": plan.donor,
        "digest": plan.digest,
        "seed": plan.seed,
        "bytes_read": plan.bytes_in,
        "bytes_written": plan.bytes_out,
        "disk": plan.disk,
        "peak_memory": _peak(plan)[1],
        "jobs": [_job_json(job) for job in plan.jobs],
        "shards": [{"file": s.file, "bytes": s.data_bytes} for s in plan.shards],
        "side_files": [f.name for f in plan.side_files],
        "filters": [
            {"where": f.where, "filter": f.filter, "matched": f.matched, "asked": f.asked}
            for f in plan.filters
        ],
        "vocabulary": vocabulary_json(plan.vocabulary) if plan.vocabulary else None,
        "unused": {model: list(names) for model, names in plan.unused.items()},
        "warnings": [str(w) for w in (*plan.recipe.warnings, *plan.warnings)],
        "chain": [plan_json(part) for part in plan.chain],
    }


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "dtype": DTYPES[job.dtype].torch_name,
        "shape": list(job.shape),
        "method": job.method,
        "why": job.why or None,
        "position": job.position,
        "parameters": dict(job.parameters),
        "inputs": [
            {"model": i.model, "tensor": i.tensor, "parameters": dict(i.parameters)}
            for i in job.inputs
        ],
    }

"""Turn measurements into ratios, verdicts against the budgets, and a Markdown report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.recipes import METHODS, Wanted

COLD_ENGINE_OVER_FLOOR = 1.25  # the disk's own speed, and some noise
START_SECONDS = 0.5
PLAN_70B_SECONDS = 2.0
PLAN_70B_BYTES = 300e6


def ratio(top: float | None, bottom: float | None) -> float | None:
    """Return top / bottom, None when either was not measured."""
    return top / bottom if top is not None and bottom else None


def show(value: float | None, digits: int = 2, unit: str = "×") -> str:
    """Return a number for a table, a dash when it was not measured."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def megabytes(value: float | None) -> str:
    """Return bytes as decimal megabytes for a table."""
    return show(None if value is None else value / 1e6, 0, " MB")


def ratios(result: dict[str, Any]) -> dict[str, float | None]:
    """Return the ratios of one method's medians."""
    floor, ours, peer = result["floor"], result.get("ours"), result.get("peer")
    ours, peer = ours or {}, peer or {}
    return {
        "engine_over_floor": ratio(ours.get("engine"), floor["engine"]),
        "engine_over_threaded": ratio(ours.get("engine"), result["threaded"]["engine"]),
        "process_over_floor": ratio(ours.get("wall"), floor["engine"]),
        "peer_over_floor": ratio(peer.get("wall"), floor["engine"]),
        "peer_over_ours_wall": ratio(peer.get("wall"), ours.get("wall")),
        "peer_over_ours_cpu": ratio(peer.get("cpu"), ours.get("cpu")),
        "peer_over_ours_rss": ratio(peer.get("peak_rss"), ours.get("peak_rss")),
    }


def merge_faults(
    name: str, result: dict[str, Any], wanted: Wanted, *, cold: bool = False
) -> list[str]:
    """Return what of one method is over its budget or wrong.

    Args:
        name: of the method.
        result: its medians and verification.
        wanted: the budget.
        cold: the faster floor counts, for that is the disk's own speed.
    """
    faults = [f"{name}: {fault}" for fault in result["verification"]["faults"]]
    ours, peer = result.get("ours"), result.get("peer")
    if not ours:
        return faults
    floors = [result["floor"]["engine"], *([result["threaded"]["engine"]] if cold else [])]
    engine = ratio(ours.get("engine"), min(floors))
    if engine is None:
        faults.append(f"{name}: mergeloom reported no engine time")
    elif wanted.engine and engine > wanted.engine:
        faults.append(
            f"{name}: engine is {engine:.2f} × the floor, at most {wanted.engine:g} × wanted"
        )
    if peer and peer["wall"] < wanted.faster * ours["wall"]:
        faults.append(
            f"{name}: the peer's process takes {peer['wall'] / ours['wall']:.1f} times as long, "
            f"at least {wanted.faster:g} wanted"
        )
    if ours["peak_rss"] > wanted.peak:
        most = megabytes(wanted.peak)
        faults.append(f"{name}: peak {megabytes(ours['peak_rss'])}, at most {most} wanted")
    return faults


def command_faults(name: str, result: dict[str, Any]) -> list[str]:
    """Return what of one weightless command is over its budget."""
    faults = [f"{name}: imports {package}" for package in result["imports"]]
    large = name == "plan 70B"
    limit = PLAN_70B_SECONDS if large else START_SECONDS
    if result["code"] != 0:
        faults.append(f"{name}: exit code {result['code']}")
    if result["wall"] > limit:
        faults.append(f"{name}: {result['wall'] / limit:.2f} × its budget of {limit} s")
    if large and result["peak_rss"] > PLAN_70B_BYTES:
        faults.append(f"{name}: peak {megabytes(result['peak_rss'])}, at most 300 MB wanted")
    return faults


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def merge_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of ratios, a row per method."""
    header = (
        "method",
        "engine / floor",
        "threaded floor",
        "process / floor",
        "peer / floor",
        "peer / ours: wall",
        "CPU",
        "memory",
        "peak: ours",
        "peer (anonymous)",
        "max ulp: ours",
        "peer",
    )
    rows = []
    for name, result in results.items():
        numbers, ulps = ratios(result), result["verification"]["max_ulps"]
        ours, peer = result.get("ours") or {}, result.get("peer") or {}
        rows.append(
            (
                name,
                show(numbers["engine_over_floor"]),
                show(numbers["engine_over_threaded"]),
                show(numbers["process_over_floor"]),
                show(numbers["peer_over_floor"], 1),
                show(numbers["peer_over_ours_wall"], 1),
                show(numbers["peer_over_ours_cpu"], 1),
                show(numbers["peer_over_ours_rss"], 1),
                megabytes(ours.get("peak_rss")),
                f"{megabytes(peer.get('peak_rss'))} ({megabytes(peer.get('peak_anonymous'))})",
                show(ulps.get("ours"), 2, ""),
                show(ulps.get("peer"), 2, ""),
            )
        )
    return table(header, rows)


def command_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of commands that read no weights."""
    rows = []
    for name, result in results.items():
        limit = PLAN_70B_SECONDS if name == "plan 70B" else START_SECONDS
        rows.append(
            (
                name,
                show(result["wall"] / limit),
                show(result["cpu"] / limit),
                megabytes(result["peak_rss"]),
                str(result["modules"]),
                ", ".join(result["imports"]) or "none",
                str(result["code"]),
            )
        )
    header = (
        "command",
        "time / budget",
        "CPU / budget",
        "peak",
        "modules",
        "torch, transformers",
        "exit",
    )
    return table(header, rows)


def faults(report: dict[str, Any]) -> list[str]:
    """Return every budget or verification fault of a report."""
    found = []
    for name, result in report.get("merges", {}).items():
        wanted = METHODS[name].wanted
        cold = report["settings"]["cache"] == "cold"
        if cold:
            wanted = replace(wanted, engine=COLD_ENGINE_OVER_FLOOR)
        found += merge_faults(name, result, wanted, cold=cold)
    for name, result in report.get("commands", {}).items():
        found += command_faults(name, result)
    return found


def describe(machine: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return the lines that say when, where and how it was measured."""
    disk = machine["disk"]
    kind = "sparse (times mean little)" if settings["sparse"] else "synthetic"
    # Our own merges keep about as many threads busy as there are cores, others' work comes on top.
    before, after = machine["load_at_start"], machine["load_at_end"]
    busy = before > 0.5 * machine["cores"] or after > 1.5 * machine["cores"]
    noise = ": **the machine was shared, times are noisy**" if busy else ""
    return "\n".join(
        (
            f"- {machine['date']}, load {before:.1f} at the start, {after:.1f} at the end{noise}",
            f"- {machine['cpu']}, {machine['cores']} cores, "
            f"{machine['memory_bytes'] / 2**30:.0f} GiB, "
            f"{disk['device']} ({disk['filesystem']}, {disk['kind']}), Linux {machine['kernel']}",
            f"- ours: {versions(machine['ours'])}",
            f"- peer: {versions(machine['peer'])}",
            f"- {settings['size']} {kind} Llama, {settings['cache']} page cache, median of "
            f"{settings['repeats']} runs, {settings['threads']} threads",
        )
    )


def versions(found: dict[str, str | None] | None) -> str:
    """Return package versions in one line."""
    return ", ".join(f"{k} {v}" for k, v in (found or {}).items() if v) or "not measured"


def markdown(report: dict[str, Any]) -> str:
    """Return the whole report: ratios first, then faults, then how it was measured."""
    parts = ["# Benchmark: mergeloom beside mergekit"]
    if report.get("merges"):
        parts += ["## Merges", merge_table(report["merges"])]
    if report.get("commands"):
        parts += ["## Commands that read no weights", command_table(report["commands"])]
    found = faults(report)
    nothing = not report.get("commands") and not any("ours" in r for r in report["merges"].values())
    within = "mergeloom was not measured." if nothing else "Everything is within its budget."
    verdict = [f"- {fault}" for fault in found] or [within]
    parts += ["## Verdict", "\n".join(verdict)]
    parts += ["## Measured", describe(report["machine"], report["settings"])]
    return "\n\n".join(parts) + "\n"

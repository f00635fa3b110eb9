"""Start-up time of the commands that need no weights, and the plan of a 70B recipe.

Used by `core.py`. The console script is run as a user runs it; a second run under
`-X importtime` lists every module it imported, so a stray import of torch cannot hide.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.process import run
from benchmarks.recipes import METHODS, PLAN_70B, recipe_text
from benchmarks.synthetic import SIZES, synthetic_set

FORBIDDEN = ("torch", "transformers")
COMMANDS = ("--help", "check", "plan")


def imported(log: str) -> dict[str, float]:
    """Return the cumulative milliseconds of each imported module in an importtime listing."""
    modules = {}
    for line in log.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            modules[parts[2].strip()] = int(parts[1]) / 1000
    return modules


def heaviest(modules: dict[str, float], number: int = 8) -> dict[str, float]:
    """Return the packages whose import took longest, in milliseconds."""
    packages = {name: spent for name, spent in modules.items() if "." not in name}
    return dict(sorted(packages.items(), key=lambda item: -item[1])[:number])


def measure_command(
    ours: Path, arguments: list[str | Path], work: Path, repeats: int
) -> dict[str, Any]:
    """Time one command and list the forbidden packages it imported."""
    log = work / "startup.log"
    runs = [run([ours, *arguments], log) for _ in range(repeats + 1)][1:]  # the first one warms up
    python = ours.parent / "python"
    probe = run([python, "-X", "importtime", ours, *arguments], log)
    modules = imported(probe.output)
    return {
        "wall": median(r.wall for r in runs),
        "cpu": median(r.cpu for r in runs),
        "peak_rss": max(r.peak_rss for r in runs),
        "code": max(abs(r.code) for r in [*runs, probe]),
        "modules": len(modules),
        "imports": [name for name in FORBIDDEN if name in modules],
        "heaviest_ms": heaviest(modules),
        "tail": probe.output[-400:] if probe.code else "",
    }


def startup(ours: Path, size: str, work: Path, repeats: int) -> dict[str, Any]:
    """Measure `--help`, `check` and `plan` on a task_arithmetic recipe of the measured size."""
    folders = synthetic_set(size)
    recipe = work / "startup.yml"
    layers = SIZES[size].num_hidden_layers
    recipe.write_text(recipe_text(METHODS["task_arithmetic"].text, folders, layers))
    return {
        name: measure_command(ours, [name] if name == "--help" else [name, recipe], work, repeats)
        for name in COMMANDS
    }


def plan70b(ours: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Measure `plan` on four sparse models of 70 billion parameters."""
    folders = synthetic_set("70B", sparse=True)
    recipe = work / "plan70b.yml"
    recipe.write_text(recipe_text(PLAN_70B, folders, SIZES["70B"].num_hidden_layers))
    return {"plan 70B": measure_command(ours, ["plan", recipe], work, repeats)}

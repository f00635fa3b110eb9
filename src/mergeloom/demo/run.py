"""``mergeloom demo``: merge the three models under several recipes and score every result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MODELS = Path(__file__).parent / "models"
PROBLEMS = 500
Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Args:
        name: the model or the merge, as printed.
        accuracy: skill → share of held-out problems solved, in [0, 1].
        seconds: how long the merge took, including writing it; None for the shipped models.
    """

    name: str
    accuracy: Mapping[str, float]
    seconds: float | None = None


def _pair(base: str | None = None, **parameters: object) -> dict[str, Any]:
    """The models ``add`` and ``sort`` with the same parameters each."""
    models = [
        {"model": str(MODELS / skill)} | ({"parameters": dict(parameters)} if parameters else {})
        for skill in ("add", "sort")
    ]
    return {"models": models} | ({"base_model": str(MODELS / base)} if base else {})


def recipes() -> dict[str, Recipe]:
    """Name → recipe, in the order of the table. Names say what distinguishes the recipe."""
    linear = {"merge_method": "linear", **_pair(weight=0.5)}
    slerp = {"merge_method": "slerp", **_pair(base="add"), "parameters": {"t": 0.5}}
    nuslerp = {"merge_method": "nuslerp", **_pair(base="base", weight=0.5)}
    arithmetic = {
        f"task_arithmetic, weight {weight}": {
            "merge_method": "task_arithmetic",
            **_pair(base="base", weight=weight),
        }
        for weight in (0.6, 0.8, 1.0)
    }
    gradient = {
        "merge_method": "slerp",
        **_pair(base="add"),
        "parameters": {"t": [{"filter": "mlp", "value": [0.3, 0.7]}, {"value": 0.5}]},
    }
    ties = {"merge_method": "ties", **_pair(base="base", weight=1.0, density=0.5)}
    stack = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(MODELS / "add"), "layer_range": [0, 2]}]},
            {"sources": [{"model": str(MODELS / "sort"), "layer_range": [1, 3]}]},
        ],
    }
    every = {
        "linear, half of each": linear,
        "slerp, t 0.5": slerp,
        "slerp, t by layer": gradient,
        "nuslerp": nuslerp,
        **arithmetic,
        "ties, density 0.5": ties,
        "passthrough, stacked": stack,
    }
    return {name: {**recipe, "dtype": "bfloat16"} for name, recipe in every.items()}


def table(rows: Sequence[Row], skills: Sequence[str]) -> str:
    """The rows as aligned text: percentages per skill, and seconds."""
    width = max(len(row.name) for row in rows)
    lines = [" ".join([" " * width, *(f"{skill:>7}" for skill in skills), "  seconds"])]
    for row in rows:
        cells = [f"{row.accuracy[skill]:7.1%}" for skill in skills]
        seconds = "" if row.seconds is None else f"  {row.seconds:7.2f}"
        lines.append(" ".join([f"{row.name:<{width}}", *cells, seconds]).rstrip())
    return "\n".join(lines)


def _shown(recipe: Recipe) -> str:
    """A recipe as YAML, with the folder of the shipped models left out."""
    text = yaml.safe_dump(dict(recipe), sort_keys=False)
    return text.replace(f"{MODELS}/", "").rstrip()


MEANING = f"""\
Percentages: how many of {PROBLEMS} held-out problems per skill the model answers exactly, to the
last character (add: two numbers of two digits; sort: the seven letters of a word). Guessing
solves less than 1 %. The first three rows come with the package: a base, and two models
fine-tuned from it on one skill each. A merge is good when both columns are high: nothing was
trained after the fine-tuning, the weights were only combined. Not every recipe does well;
stacking layers (passthrough) is there to show one that would need training afterwards."""


def run(out_dir: Path, echo: Callable[[str], None]) -> list[Row]:
    """Merge the shipped models under every recipe, score all, and print the table.

    Args:
        out_dir: gets one model folder per recipe; those of an earlier run are replaced.
        echo: called with each piece of text to print.

    Returns:
        The rows of the table: the three shipped models, then the merges.
    """
    import mergeloom
    from mergeloom.demo.skills import SKILLS, score

    def scores(folder: Path) -> dict[str, float]:
        return {skill: score(folder, skill, PROBLEMS) for skill in SKILLS}

    rows = [Row(name, scores(MODELS / name)) for name in ("base", *SKILLS)]
    for name, recipe in recipes().items():
        folder = out_dir / name.replace(", ", "-").replace(" ", "-")
        start = time.perf_counter()
        mergeloom.merge(recipe, folder, overwrite=True)
        seconds = time.perf_counter() - start
        rows.append(Row(name, scores(folder), seconds))
    echo(table(rows, list(SKILLS)))
    echo("")
    echo(MEANING)
    echo("")
    merges = rows[1 + len(SKILLS) :]
    best = max(merges, key=lambda row: min(row.accuracy.values()))
    echo(f"The recipe of the best of them ({best.name}), which you could have typed:\n")
    echo(_shown(recipes()[best.name]))
    return rows

"""Merge the demo's two specialists by every method and score both skills.

    python benchmarks/quality.py            # make bench-quality also writes docs/ again

Writes docs/measured/quality.json, from which docs/generate.py makes docs/quality.md and a part of
each method's page. Settings are usual ones, not the best ones for these models: a choice made on
the problems that are scored would flatter the method with the most parameters.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mergeloom
from benchmarks.machine import versions
from benchmarks.paths import ROOT
from mergeloom.demo.run import MODELS, PROBLEMS
from mergeloom.demo.skills import SKILLS, score
from mergeloom.methods import METHODS

OUT = ROOT / "docs" / "measured" / "quality.json"
SEEDS = 3
RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")
BASE, ADD, SORT = (str(MODELS / name) for name in ("base", "add", "sort"))


@dataclass(frozen=True)
class Setting:
    """One row: a method, what distinguishes the setting, and the rest of the recipe."""

    method: str
    words: str
    recipe: Mapping[str, Any]


def pair(base: str | None = None, **parameters: Any) -> dict[str, Any]:
    """Both specialists, with the same parameters each."""
    entries: list[dict[str, Any]] = [{"model": ADD}, {"model": SORT}]
    if parameters:
        entries = [{**entry, "parameters": parameters} for entry in entries]
    return {"models": entries} | ({"base_model": base} if base else {})


def onto(base: str, other: str, **parameters: Any) -> dict[str, Any]:
    """One specialist merged into the other."""
    return {"base_model": base, "models": [other], "parameters": parameters}


def thinned(method: str, weight: float) -> list[Setting]:
    """A method of the sparsifying family at two densities."""
    return [
        Setting(method, f"weight {weight:g}, density {d:g}", pair(BASE, weight=weight, density=d))
        for d in (0.5, 0.8)
    ]


STACK = {
    "slices": [
        {"sources": [{"model": ADD, "layer_range": [0, 2]}]},
        {"sources": [{"model": SORT, "layer_range": [1, 3]}]},
    ]
}

SETTINGS = (
    Setting("linear", "half of each (the plain mean)", pair(weight=0.5)),
    *(Setting("task_arithmetic", f"weight {w:g}", pair(BASE, weight=w)) for w in (0.6, 0.8, 1.0)),
    Setting("slerp", "t 0.5", onto(ADD, SORT, t=0.5)),
    Setting("nuslerp", "half of each", pair(weight=0.5)),
    Setting("nuslerp", "half of each, task vectors", pair(BASE, weight=0.5)),
    Setting("multislerp", "half of each", pair(weight=0.5)),
    Setting("multislerp", "half of each, task vectors", pair(BASE, weight=0.5)),
    Setting("karcher", "", pair()),
    Setting("model_stock", "", pair(BASE)),
    *thinned("ties", 1.0),
    Setting("ties", "weight 0.6, density 0.5, normalize off",
            pair(BASE, weight=0.6, density=0.5) | {"parameters": {"normalize": False}}),
    *(row for method in RANDOM[:3] for row in thinned(method, 0.6)),
    *thinned("della", 1.0),
    Setting("della", "weight 0.6, density 0.5, normalize off",
            pair(BASE, weight=0.6, density=0.5) | {"parameters": {"normalize": False}}),
    *(row for m in ("breadcrumbs", "breadcrumbs_ties") for row in thinned(m, 0.6)),
    Setting("sce", "select_topk 1", pair(BASE)),
    Setting("sce", "select_topk 0.5", pair(BASE) | {"parameters": {"select_topk": 0.5}}),
    *(Setting("nearswap", f"sort into add, t {t:g}", onto(ADD, SORT, t=t)) for t in (0.001, 0.01)),
    Setting("arcee_fusion", "sort into add", onto(ADD, SORT)),
    Setting("ram", "", pair(BASE)),
    Setting("ramplus_tl", "", pair(BASE)),
    Setting("consensus_ta", "weight 0.6, k 2, lambda 0.4",
            pair(BASE, weight=0.6, k=2, **{"lambda": 0.4})),
    Setting("consensus_ties", "weight 1, density 0.5, k 2, lambda 0.4",
            pair(BASE, weight=1.0, density=0.5, k=2, **{"lambda": 0.4})),
    Setting("passthrough", "layers of both, stacked", STACK),
)  # fmt: skip
"""Every method, the two that are hard to beat first."""


def scores(folder: Path) -> dict[str, float]:
    """The share of held-out problems solved, of each skill."""
    return {skill: score(folder, skill, PROBLEMS) for skill in SKILLS}


def measure(setting: Setting) -> dict[str, Any]:
    """Merge, with several seeds where there is chance, and score: means over the seeds."""
    recipe = {"merge_method": setting.method, "dtype": "bfloat16", **setting.recipe}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS if setting.method in RANDOM else 1):
            options = mergeloom.Options(seed=seed)
            merged = mergeloom.merge(recipe, Path(folder) / str(seed), options=options)
            found.append(scores(merged.out))
    means = {skill: mean(one[skill] for one in found) for skill in SKILLS}
    return {"method": setting.method, "setting": setting.words, "seeds": len(found), **means}


def main() -> None:
    """Measure every setting and write the file."""
    parser = argparse.ArgumentParser(description="every method on the demo's two specialists")
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    if left_out := [name for name in METHODS if name not in {s.method for s in SETTINGS}]:
        print(f"no setting for {', '.join(left_out)}", file=sys.stderr)
    found = versions(Path(sys.executable), ("mergeloom", "torch", "numpy"))
    report: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": found,
        "problems": PROBLEMS,
        "models": [{"model": name, **scores(MODELS / name)} for name in ("base", *SKILLS)],
        "merges": [],
    }
    for setting in SETTINGS:
        row = measure(setting)
        report["merges"].append(row)
        cells = "  ".join(f"{skill} {row[skill]:6.1%}" for skill in SKILLS)
        print(f"{cells}  {setting.method} {setting.words}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

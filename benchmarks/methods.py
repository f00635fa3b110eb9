"""Measure every method beside mergekit, and how the cost grows with parameters and models.

    python benchmarks/methods.py --repeats 3 --peer-repeats 1 --publish
    python benchmarks/methods.py --methods ties della --no-peer
    python benchmarks/methods.py --sizes --publish

The first takes about an hour, nearly all of it mergekit's: choose with --methods, or go on with
--append, which keeps what the report already has. With --publish the medians also go to
docs/measured/, from which `make docs` writes the tables of the documentation. The machine should
have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paths import ROOT
from benchmarks.recipes import KINDS, METHODS, Method, merged
from benchmarks.report import ratio, show, table
from benchmarks.sides import (
    Bench,
    add_arguments,
    finish,
    measure_merges,
    medians,
    new_report,
    write_json,
)
from benchmarks.synthetic import SIZES

MEASURED = ROOT / "docs" / "measured"
GROWING = ("linear", "karcher", "model_stock", "ties", "dare_ties", "della", "sce")
SIZE_STEPS = ("5M", "60M", "600M")
MODEL_STEPS = (2, 3, 5)
USUAL = 3
SHOWN = ("engine", "wall", "cpu", "peak_rss", "peak_anonymous")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="every method beside mergekit")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument(
        "--sizes",
        nargs="*",
        choices=SIZES,
        help=f"measure mergeloom at these sizes ({', '.join(SIZE_STEPS)}) with {USUAL} models, and "
        f"at the last one with {', '.join(map(str, MODEL_STEPS))}, instead of the peer",
    )
    parser.add_argument("--append", action="store_true", help="keep what the report already has")
    parser.add_argument("--publish", action="store_true", help="write docs/measured/ too")
    add_arguments(parser, "methods")
    return parser.parse_args()


def publish(name: str, report: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write what the documentation shows to docs/measured/<name>.json."""
    MEASURED.mkdir(exist_ok=True)
    text = {"machine": report["machine"], "settings": report["settings"], "measured": measured}
    (MEASURED / f"{name}.json").write_text(json.dumps(text, indent=1) + "\n")


def slim(result: dict[str, Any]) -> dict[str, Any]:
    """Return the medians that the documentation shows."""
    return {
        side: {key: result[side][key] for key in SHOWN if key in result[side]}
        for side in ("floor", "threaded", "ours", "peer")
        if side in result
    }


def merges(arguments: argparse.Namespace) -> None:
    """Measure the chosen methods beside the peer."""
    bench = Bench(arguments)
    report = new_report(bench)
    kept = arguments.report.with_name(arguments.report.name + ".json")
    if arguments.append and kept.exists():
        report["merges"] = json.loads(kept.read_text())["merges"]
    measure_merges(bench, report, [METHODS[name] for name in arguments.methods or METHODS])
    if arguments.publish:
        done = {n: slim(r) for n, r in report["merges"].items() if "ours" in r}
        publish("methods", report, done)
    finish(arguments, report)


def cost(bench: Bench, method: Method) -> dict[str, Any]:
    """Return medians of the floor's and of mergeloom's runs."""
    recipe = bench.recipe(method)
    floors, ours = [], []
    for _ in range(bench.arguments.repeats):
        floors.append(bench.floor(method))
        ours.append(bench.merge_ours(method, recipe))
    bench.clear()
    made = slim({"floor": medians(floors), "ours": medians(ours)})
    elements = len(method.models) * SIZES[bench.size].parameters()
    return {**made, "size": bench.size, "models": len(method.models), "input_elements": elements}


def growth_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return engine nanoseconds for each input element: a row is level where cost is linear."""
    header = ["method"]
    rows = []
    for name, cases in found.items():
        header += [f"{c['size']} × {c['tuned']}" for c in cases] if len(header) == 1 else []
        spent = [ratio(c["ours"].get("engine"), c["input_elements"]) for c in cases]
        rows.append([name, *(show(s and s * 1e9, 2, "") for s in spent)])
    return table(header, rows)


def sizes(arguments: argparse.Namespace) -> None:
    """Measure how cost grows."""
    arguments.no_peer = True
    steps = tuple(arguments.sizes) or SIZE_STEPS
    cases = [(size, USUAL) for size in steps]
    cases += [(steps[-1], count) for count in MODEL_STEPS if count != USUAL]
    names = arguments.methods or GROWING
    if wrong := [name for name in names if name not in KINDS or KINDS[name].most == 1]:
        raise SystemExit(f"{', '.join(wrong)}: the number of models cannot be chosen")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for size, count in cases:
        bench = Bench(arguments, size, tuned=max(MODEL_STEPS))
        report = {**new_report(bench), "sizes": found}
        for name in names:
            print(f"{size} × {count} {name} ...", file=sys.stderr, flush=True)
            found[name].append({**cost(bench, merged(name, count)), "tuned": count})
            write_json(arguments.report.with_name(arguments.report.name + "-sizes"), report)
    if arguments.publish:
        publish("sizes", report, found)
    print(growth_table(found))


def main() -> None:
    """Measure what was asked for."""
    arguments = parse()
    if arguments.sizes is None:
        merges(arguments)
    else:
        sizes(arguments)


if __name__ == "__main__":
    main()

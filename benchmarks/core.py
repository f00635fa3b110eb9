"""Measure merges side by side: the floor, mergeloom and mergekit, each as a whole process.

    python benchmarks/core.py                   # everything, warm page cache
    python benchmarks/core.py merge --cold --methods linear slerp
    python benchmarks/core.py startup plan70b

See README.md beside this file for what is measured and what the numbers mean, and methods.py for
the methods that are not here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recipes import CORE, METHODS
from benchmarks.sides import Bench, add_arguments, finish, measure_merges, new_report
from benchmarks.startup import plan70b, startup

PARTS = ("merge", "startup", "plan70b")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="floor, mergeloom and mergekit side by side")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--methods", nargs="+", choices=CORE, default=list(CORE))
    add_arguments(parser, "report")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or list(PARTS)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return arguments


def main() -> None:
    """Measure, print the tables, write `<report>.json` and `<report>.md`."""
    arguments = parse()
    bench = Bench(arguments)
    report = new_report(bench)
    report["commands"] = {}
    if "merge" in arguments.parts:
        measure_merges(bench, report, [METHODS[name] for name in arguments.methods])
    if "startup" in arguments.parts and bench.ours:
        report["commands"] |= startup(bench.ours, arguments.size, bench.work, arguments.repeats)
    if "plan70b" in arguments.parts and bench.ours:
        report["commands"] |= plan70b(bench.ours, bench.work, arguments.repeats)
    finish(arguments, report)


if __name__ == "__main__":
    main()

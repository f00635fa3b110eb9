"""Measure merges side by side: the floor, mergeloom and mergekit, each as a whole process.

    python benchmarks/core.py                   # everything, warm page cache
    python benchmarks/core.py merge --cold --methods linear slerp
    python benchmarks/core.py startup plan70b

See README.md beside this file for what is measured and what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peer as peer_environment
from benchmarks import report as reporting
from benchmarks.machine import facts
from benchmarks.paths import BENCH, ROOT
from benchmarks.process import Measured, chill, run, warm
from benchmarks.recipes import METHODS, Method, input_files, needed_ranges, recipe_text
from benchmarks.startup import plan70b, startup
from benchmarks.synthetic import SIZES, synthetic_set

PARTS = ("merge", "startup", "plan70b")
HERE = Path(__file__).resolve().parent
# Neither tool may look for a model hub in the middle of a measurement.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class RunFailed(Exception):  # noqa: N818 -- it is a finding, not a defect of the benchmark
    """A tool ended with an error; says which and the end of its output."""


class Bench:
    """One benchmark session: where things are and how each run is made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.folders = synthetic_set(arguments.size, sparse=arguments.sparse)
        self.layers = SIZES[arguments.size].num_hidden_layers
        self.output_bytes = 2 * SIZES[arguments.size].parameters()
        exists = arguments.ours.exists() and not arguments.no_ours
        self.ours: Path | None = arguments.ours if exists else None
        self.peer = None if arguments.no_peer else peer_environment.program(arguments.peer_venv)
        self.state: dict[str, Any] = {}

    def prepare(self, method: Method, output: Path) -> None:
        """Bring page cache and disk to the same state before every run."""
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        os.sync()  # no run pays for what the one before it left unwritten
        files = input_files(method, self.folders)
        if self.arguments.cold:
            share, how = chill(files)
        else:
            share, how = warm(files), "all inputs read once"
        self.state = {"cached_share": round(share, 3), "mechanism": how}

    def floor(self, method: Method) -> dict[str, Any]:
        """Run the floor once."""
        output = self.work / "floor.bin"
        reads = self.work / "floor-reads.json"
        ranges = needed_ranges(method, self.folders, self.layers)
        reads.write_text(json.dumps(ranges))
        self.prepare(method, output)
        specification = {
            "reads": str(reads),
            "write": self.output_bytes,
            "out": str(output),
            "threads": self.arguments.threads,
        }
        command: list[str | Path] = [sys.executable, HERE / "floor.py", json.dumps(specification)]
        measured = succeeded("the floor", run(command, self.work / "floor.log"))
        output.unlink()
        result = as_result(measured)
        result["engine"] = json.loads(measured.output.splitlines()[-1])["seconds"]
        result["bytes_read"] = sum(length for _, _, length in ranges)
        return result

    def merge_ours(self, method: Method, recipe: Path) -> dict[str, Any]:
        """Run mergeloom once."""
        output, timings = self.work / "ours", self.work / "timings.json"
        timings.unlink(missing_ok=True)
        self.prepare(method, output)
        assert self.ours is not None
        command: list[str | Path] = [self.ours, "merge", recipe, output, "--timings", timings]
        command += ["--quiet", "--threads", str(self.arguments.threads)]
        measured = succeeded("mergeloom", run(command, self.work / "ours.log", OFFLINE))
        told = json.loads(timings.read_text()) if timings.exists() else {}
        return {**as_result(measured), "engine": told.get("engine_seconds"), "timings": told}

    def merge_peer(self, method: Method, recipe: Path) -> dict[str, Any]:
        """Run mergekit once."""
        output = self.work / "peer"
        self.prepare(method, output)
        assert self.peer is not None
        command = [self.peer, recipe, output, "--quiet", *self.arguments.peer_flags]
        return as_result(succeeded("mergekit", run(command, self.work / "peer.log", OFFLINE)))

    def verify(self, method: Method) -> dict[str, Any]:
        """Compare what the last runs wrote, in a child process of its own."""
        outputs = {side: str(self.work / side) for side in ("ours", "peer")}
        specification = {
            "method": method.name,
            "layers": self.layers,
            "inputs": {model: str(folder) for model, folder in self.folders.items()},
            "outputs": {
                side: p for side, p in outputs.items() if list(Path(p).glob("*.safetensors"))
            },
        }
        path = self.work / "verify.json"
        path.write_text(json.dumps(specification))
        command: list[str | Path] = [sys.executable, HERE / "verify.py", path]
        measured = succeeded("verification", run(command, self.work / "verify.log"))
        return dict(json.loads(measured.output.splitlines()[-1]))

    def measure(self, method: Method) -> dict[str, Any]:
        """Run floor, ours and peer in turn, `repeats` times, and return medians of each."""
        recipe = self.work / f"{method.name}.yml"
        recipe.write_text(recipe_text(method.text, self.folders, self.layers))
        runs: dict[str, list[dict[str, Any]]] = {"floor": [], "ours": [], "peer": []}
        failures = []
        self.clear()  # of an interrupted session
        # In turn, so that a slow minute of a shared machine falls on all three.
        for _ in range(self.arguments.repeats):
            runs["floor"].append(self.floor(method))
            try:
                if self.ours:
                    runs["ours"].append(self.merge_ours(method, recipe))
                if self.peer:
                    runs["peer"].append(self.merge_peer(method, recipe))
            except RunFailed as failure:
                failures.append(str(failure))
                break  # the other methods are still worth measuring
        result: dict[str, Any] = {side: medians(made) for side, made in runs.items() if made}
        result["verification"] = self.verify(method)
        result["verification"]["faults"] += failures
        result["cache"] = self.state
        result["runs"] = runs
        self.clear()
        return result

    def clear(self) -> None:
        """Delete both tools' outputs."""
        for side in ("ours", "peer"):
            shutil.rmtree(self.work / side, ignore_errors=True)


def succeeded(what: str, measured: Measured) -> Measured:
    """Return the measurement of a run that ended well; raise RunFailed otherwise."""
    if measured.code != 0:
        print(measured.output[-3000:], file=sys.stderr)
        last = (measured.output.strip().splitlines() or ["no output"])[-1]
        raise RunFailed(f"{what} ended with code {measured.code}: {last}")
    return measured


def as_result(measured: Measured) -> dict[str, Any]:
    """Return a measurement as plain data, without the run's text."""
    result = asdict(measured)
    del result["output"]
    return {**result, "cpu": measured.cpu, "load": os.getloadavg()[0]}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of every number, the largest of the memory peaks."""
    result: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [r[key] for r in runs]
        if not isinstance(first, int | float) or None in values:
            continue
        result[key] = max(values) if key.startswith("peak") else median(values)
    return result


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="floor, mergeloom and mergekit side by side")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--size", choices=[s for s in SIZES if s != "70B"], default="600M")
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="inputs are holes: memory at a large size on a small disk; the times mean little",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the floor and of mergeloom")
    parser.add_argument("--cold", action="store_true", help="inputs not in the page cache")
    parser.add_argument("--ours", type=Path, default=ROOT / ".venv/bin/mergeloom")
    parser.add_argument("--peer-venv", type=Path, metavar="PATH")
    parser.add_argument("--peer-flags", nargs="*", default=[], help="write --peer-flags=-x")
    parser.add_argument("--no-ours", action="store_true")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--work", type=Path, default=BENCH / "work")
    parser.add_argument("--report", type=Path, default=BENCH / "report", help="base name")
    parser.add_argument("--check", action="store_true", help="exit 1 when over a budget")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or list(PARTS)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return arguments


def measure_all(bench: Bench) -> dict[str, Any]:
    """Measure the chosen parts and return the report as plain data."""
    arguments = bench.arguments
    cache = "cold" if arguments.cold else "warm"
    report: dict[str, Any] = {
        "machine": facts(bench.work, arguments.ours, bench.peer),
        "settings": {
            "size": arguments.size,
            "cache": cache,
            "sparse": arguments.sparse,
            "repeats": arguments.repeats,
            "threads": arguments.threads,
            "peer_flags": arguments.peer_flags,
        },
        "merges": {},
        "commands": {},
    }
    for name in arguments.methods if "merge" in arguments.parts else []:
        print(f"{name} ...", file=sys.stderr, flush=True)
        report["merges"][name] = bench.measure(METHODS[name])
    report["machine"]["load_at_end"] = os.getloadavg()[0]
    if "startup" in arguments.parts and bench.ours:
        report["commands"] |= startup(bench.ours, arguments.size, bench.work, arguments.repeats)
    if "plan70b" in arguments.parts and bench.ours:
        report["commands"] |= plan70b(bench.ours, bench.work, arguments.repeats)
    return report


def main() -> None:
    """Measure, print the tables, write `<report>.json` and `<report>.md`."""
    arguments = parse()
    bench = Bench(arguments)
    if not bench.ours and not arguments.no_ours:
        print(f"{arguments.ours} does not exist: mergeloom is left out", file=sys.stderr)
    if not bench.peer and not arguments.no_peer:
        print("no peer: run `python benchmarks/peer.py setup`, or --no-peer", file=sys.stderr)
    report = measure_all(bench)
    text = reporting.markdown(report)
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.with_name(arguments.report.name + ".json").write_text(
        json.dumps({**report, "faults": reporting.faults(report)}, indent=2) + "\n"
    )
    arguments.report.with_name(arguments.report.name + ".md").write_text(text)
    print(text)
    wrong = any(result["verification"]["faults"] for result in report["merges"].values())
    if wrong or (arguments.check and reporting.faults(report)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

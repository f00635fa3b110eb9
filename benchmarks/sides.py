"""The three sides of a measurement: the floor, mergeloom and mergekit, each as a whole process.

What `core.py` and `methods.py` share: their common arguments, how a run is made and measured, and
the report, which is written after every method, so that an interrupted session is not lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import peer as peer_environment
from benchmarks import report as reporting
from benchmarks.machine import facts
from benchmarks.paths import BENCH, ROOT
from benchmarks.process import Measured, chill, run, warm
from benchmarks.recipes import Method, input_files, needed_ranges, recipe_text
from benchmarks.synthetic import SIZES, synthetic_set

HERE = Path(__file__).resolve().parent
# Neither tool may look for a model hub in the middle of a measurement.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Seconds. A disk discards the blocks of deleted files in its own time. A run of ours comes after
# the deletion of the model that the last one wrote, a floor after none that had reached the disk.
# Without a pause our cold merges took a fifth longer than the first, which had nothing to delete.
SETTLING = 5.0


class RunFailed(Exception):  # noqa: N818 -- it is a finding, not a defect of the benchmark
    """A tool ended with an error; says which and the end of its output."""


COMPILE = "import compileall, mergeloom; compileall.compile_dir(mergeloom.__path__[0], quiet=1)"


def compile_ours(program: Path) -> None:
    """Write mergeloom's bytecode, as installing a package does and a checkout may not have it."""
    subprocess.run([program.parent / "python", "-c", COMPILE], check=True)


class Bench:
    """One benchmark session: where things are and how each run is made.

    Args:
        arguments: those of ``add_arguments``.
        size: of the models, a key of ``SIZES``; by default the chosen one.
        tuned: how many fine-tunes there are.
    """

    def __init__(
        self, arguments: argparse.Namespace, size: str | None = None, tuned: int = 3
    ) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.size = size or arguments.size
        self.folders = synthetic_set(self.size, sparse=arguments.sparse, tuned=tuned)
        self.layers = SIZES[self.size].num_hidden_layers
        self.output_bytes = 2 * SIZES[self.size].parameters()
        exists = arguments.ours.exists() and not arguments.no_ours
        self.ours: Path | None = arguments.ours if exists else None
        if self.ours:
            compile_ours(self.ours)
        self.peer = None if arguments.no_peer else peer_environment.program(arguments.peer_venv)
        self.state: dict[str, Any] = {}
        if not self.ours and not arguments.no_ours:
            print(f"{arguments.ours} does not exist: mergeloom is left out", file=sys.stderr)
        if not self.peer and not arguments.no_peer:
            print("no peer: run `python benchmarks/peer.py setup`, or --no-peer", file=sys.stderr)

    def prepare(self, method: Method, output: Path) -> None:
        """Bring page cache and disk to the same state before every run."""
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        os.sync()  # no run pays for what the one before it left unwritten
        files = input_files(method, self.folders)
        if self.arguments.cold:
            time.sleep(SETTLING)
            share, how = chill(files)
        else:
            share, how = warm(files), "all inputs read once"
        self.state = {"cached_share": round(share, 3), "mechanism": how}

    def floor(self, method: Method, threads: int = 1) -> dict[str, Any]:
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
            "threads": threads,
        }
        command: list[str | Path] = [sys.executable, HERE / "floor.py", json.dumps(specification)]
        measured = succeeded("the floor", run(command, self.work / "floor.log"))
        output.unlink()
        result = as_result(measured)
        result["engine"] = json.loads(measured.output.splitlines()[-1])["seconds"]
        result["bytes_read"] = sum(length for _, _, length in ranges)
        return result

    def recipe(self, method: Method) -> Path:
        """Write a method's recipe."""
        path = self.work / f"{method.name}.yml"
        path.write_text(recipe_text(method.text, self.folders, self.layers))
        return path

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
        """Run floors, ours and peer in turn, `repeats` times, and return medians of each."""
        recipe = self.recipe(method)
        runs: dict[str, list[dict[str, Any]]] = {
            "floor": [], "threaded": [], "ours": [], "peer": []
        }  # fmt: skip
        failures = []
        self.clear()  # of an interrupted session
        # In turn, so that a slow minute of a shared machine falls on all three.
        for turn in range(self.arguments.repeats):
            runs["floor"].append(self.floor(method))
            runs["threaded"].append(self.floor(method, self.arguments.threads))
            try:
                if self.ours:
                    runs["ours"].append(self.merge_ours(method, recipe))
                if self.peer and method.peer and turn < self.arguments.peer_repeats:
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


def add_arguments(parser: argparse.ArgumentParser, report: str) -> None:
    """Add the arguments that every measurement has.

    Args:
        parser: gets them.
        report: the default name of the report.
    """
    parser.add_argument("--size", choices=[s for s in SIZES if s != "70B"], default="600M")
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="inputs are holes: memory at a large size on a small disk; the times mean little",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peer-repeats", type=int, default=sys.maxsize, metavar="N", help="fewer for the peer"
    )
    parser.add_argument("--threads", type=int, default=2, help="of ours, and of its floor")
    parser.add_argument("--cold", action="store_true", help="inputs not in the page cache")
    parser.add_argument("--ours", type=Path, default=ROOT / ".venv/bin/mergeloom")
    parser.add_argument("--peer-venv", type=Path, metavar="PATH")
    parser.add_argument("--peer-flags", nargs="*", default=[], help="write --peer-flags=-x")
    parser.add_argument("--no-ours", action="store_true")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--work", type=Path, default=BENCH / "work")
    parser.add_argument("--report", type=Path, default=BENCH / report, help="base name")
    parser.add_argument("--check", action="store_true", help="exit 1 when over a budget")


def new_report(bench: Bench) -> dict[str, Any]:
    """Return a report with the machine and the settings, and nothing measured yet."""
    arguments = bench.arguments
    return {
        "machine": {
            **facts(bench.work, arguments.ours, bench.peer),
            "load_at_end": os.getloadavg()[0],
        },
        "settings": {
            "size": bench.size,
            "cache": "cold" if arguments.cold else "warm",
            "sparse": arguments.sparse,
            "repeats": arguments.repeats,
            "threads": arguments.threads,
            "peer_flags": arguments.peer_flags,
        },
        "merges": {},
    }


def measure_merges(bench: Bench, report: dict[str, Any], methods: list[Method]) -> None:
    """Measure methods into a report and write it after each."""
    for method in methods:
        print(f"{method.name} ...", file=sys.stderr, flush=True)
        report["merges"][method.name] = bench.measure(method)
        report["machine"]["load_at_end"] = os.getloadavg()[0]
        write_json(bench.arguments.report, report)


def write_json(base: Path, report: dict[str, Any]) -> None:
    """Write `<base>.json`, with what is over its budget."""
    base.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**report, "faults": reporting.faults(report)}, indent=2) + "\n"
    base.with_name(base.name + ".json").write_text(text)


def finish(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write `<report>.json` and `<report>.md` and print the tables.

    Ends the program with code 1 for a wrong result, and with --check for one over its budget.
    """
    report["machine"]["load_at_end"] = os.getloadavg()[0]
    write_json(arguments.report, report)
    text = reporting.markdown(report)
    arguments.report.with_name(arguments.report.name + ".md").write_text(text)
    print(text)
    wrong = any(result["verification"]["faults"] for result in report["merges"].values())
    if wrong or (arguments.check and reporting.faults(report)):
        raise SystemExit(1)

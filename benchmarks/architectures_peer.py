"""Merge and stack the tiny checkpoints of tests/matrix with mergekit and with mergeloom.

    python benchmarks/peer.py setup                                  # once
    python benchmarks/architectures_peer.py --out docs/architectures.md

For every model type: a linear merge of two siblings, and slices [0, 2) + [1, n) of a text model.
transformers loads what came out. It counts as right when nothing is missing, left over or of
another shape, and every number is the one that the loaded inputs give. The table replaces the
section "Compared with mergekit" of the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` and the matrix importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers
import yaml
from matrix.case import Case
from matrix.cases import TYPES
from matrix.checkpoints import load, write_siblings
from matrix.reference import traits

import mergeloom
from benchmarks.machine import versions
from benchmarks.peer import chosen

WEIGHT = 0.6
WIDTH = 80  # of a message in the table
TITLE = "## Compared with mergekit"
# Calls the program's own entry point once for each recipe, in a process of its own: importing
# torch and transformers takes longer than these merges.
DRIVER = """
import json, os, sys, traceback
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="mergekit-yaml")
main = script.load()
for recipe, out, log in json.load(open(sys.argv[1])):
    if (child := os.fork()) == 0:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(sink, 1), os.dup2(sink, 2)
        sys.argv = ["mergekit-yaml", recipe, out, "--no-copy-tokenizer", "--quiet"]
        try:
            sys.exit(main())
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(0 if not stop.code else 1)
    _, status = os.waitpid(child, 0)
    print(json.dumps([out, os.waitstatus_to_exitcode(status)]), flush=True)
"""


@dataclass(frozen=True)
class Result:
    """What came of one recipe: ``kind`` in a word or two, and what was seen."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"**{self.kind}**: {self.detail}" if self.detail else self.kind


RIGHT = Result("right")


# --- recipes --------------------------------------------------------------------------------------


def recipes(case: Case, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the recipes of one model type; slices only of models with a single stack."""
    a, b = str(folder / "A"), str(folder / "B")
    models = [{"model": a, "parameters": {"weight": 1 - WEIGHT}},
              {"model": b, "parameters": {"weight": WEIGHT}}]  # fmt: skip
    made: dict[str, dict[str, Any]] = {"linear": {"merge_method": "linear", "models": models}}
    if stack := sliced(case):
        length = len(load(folder / "A", case)[0].get_submodule(stack))
        slices = [{"sources": [{"model": a, "layer_range": [0, 2]}]},
                  {"sources": [{"model": b, "layer_range": [1, length]}]}]  # fmt: skip
        made["slices"] = {"merge_method": "passthrough", "slices": slices}
    return made


def sliced(case: Case) -> str | None:
    """Return where the layers of a model with a single stack are."""
    return next((path for path, module in case.stacks.items() if module is None), None)


# --- judging --------------------------------------------------------------------------------------


def judge(case: Case, kind: str, folder: Path, out: Path) -> Result:
    """Return whether transformers loads what was expected."""
    try:
        made, found = load(out, case)
    except Exception as error:  # noqa: BLE001 - whatever transformers says is the finding
        return Result("does not load", last_line(str(error), folder))
    if lost := found.get("missing_keys"):
        return Result("loses tensors", f"{len(lost)} are missing on load, such as {lost[0]}")
    if found:
        key, names = next(iter(found.items()))
        return Result("does not load", f"{len(names)} {key.replace('_', ' ')}, such as {names[0]}")
    a, b = (load(folder / sibling, case)[0] for sibling in "AB")
    return average_of(a, b, made) if kind == "linear" else stack_of(case, a, b, made)


def average_of(a: Any, b: Any, made: Any) -> Result:
    """Compare every number with the average of the loaded models."""
    ours, one, other = made.state_dict(), a.state_dict(), b.state_dict()
    for name, value in ours.items():
        wanted = (1 - WEIGHT) * one[name].double() + WEIGHT * other[name].double()
        if not torch.allclose(value.double(), wanted, rtol=1e-5, atol=1e-6):
            return Result("other numbers", name)
    return RIGHT


def stack_of(case: Case, a: Any, b: Any, made: Any) -> Result:
    """Compare every layer with the one it was copied from: its numbers and its kind."""
    stack = sliced(case) or ""
    wanted = [*a.get_submodule(stack)[:2], *b.get_submodule(stack)[1:]]
    layers = list(made.get_submodule(stack))
    if len(layers) != len(wanted):
        return Result("other layers", f"{len(layers)} instead of {len(wanted)}")
    for number, (layer, source) in enumerate(zip(layers, wanted, strict=True)):
        if traits(layer) != traits(source):
            return Result("other layers", f"layer {number} became one of another kind")
        ours, theirs = layer.state_dict(), source.state_dict()
        if any(not torch.equal(ours[name], value) for name, value in theirs.items()):
            return Result("other numbers", f"layer {number}")
    return RIGHT


def last_line(text: str, folder: Path) -> str:
    """Return what a program said last, short enough for a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = (lines[-1] if lines else "").replace(f"{folder}/", "").replace("|", "\\|")
    return said if len(said) <= WIDTH else f"{said[:WIDTH]}…"


def stopped(case: Case, kind: str, text: str, folder: Path) -> Result:
    """Return what to make of a tool that stopped: for some stacks that is the right answer."""
    refused = kind == "slices" and case.refused
    return Result("refused" if refused else "error", last_line(text, folder))


# --- running --------------------------------------------------------------------------------------

Results = dict[tuple[str, str], Result]


def run(work: Path, peer: Path, names: list[str]) -> tuple[Results, Results]:
    """Run both tools over every recipe; return theirs and ours."""
    jobs = []
    for name in names:
        write_siblings(TYPES[name], work / name)
        for kind, recipe in recipes(TYPES[name], work / name).items():
            path = work / name / f"{kind}.yml"
            path.write_text(yaml.safe_dump(recipe))
            jobs.append((name, kind, path))
    listed = [(str(p), str(p.with_suffix(".peer")), str(p.with_suffix(".log"))) for *_, p in jobs]
    (work / "jobs.json").write_text(json.dumps(listed))
    (work / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [str(peer / "bin" / "python"), str(work / "driver.py"), str(work / "jobs.json")],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    codes = dict(json.loads(line) for line in done.stdout.splitlines())
    theirs: Results = {}
    ours: Results = {}
    for name, kind, path in jobs:
        case, out = TYPES[name], path.with_suffix(".peer")
        theirs[name, kind] = (
            stopped(case, kind, path.with_suffix(".log").read_text(errors="replace"), work / name)
            if codes[str(out)]
            else judge(case, kind, work / name, out)
        )
        try:
            made = mergeloom.merge(path, path.with_suffix(".ours")).out
        except mergeloom.MergeloomError as mistake:
            ours[name, kind] = stopped(case, kind, str(mistake), work / name)
        else:
            ours[name, kind] = judge(case, kind, work / name, made)
    return theirs, ours


# --- the page -------------------------------------------------------------------------------------


def counted(results: Results, kind: str) -> str:
    """Return how often each outcome came, the most frequent first."""
    counts = Counter(r.kind for (_, k), r in results.items() if k == kind)
    return ", ".join(f"{count} {word}" for word, count in counts.most_common())


def section(theirs: Results, ours: Results, peer: Path) -> str:
    """Return the Markdown section."""
    packages = ("mergeloom", "mergekit", "torch", "transformers")
    us = versions(Path(sys.executable), packages)
    them = versions(peer / "bin" / "python", packages)
    lines = [
        TITLE,
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} with `benchmarks/architectures_peer.py`: mergeloom "
        f"{us.get('mergeloom')} and mergekit {them.get('mergekit')}, transformers "
        f"{us.get('transformers')} and {them.get('transformers')}, torch {us.get('torch')} and "
        f"{them.get('torch')}.",
        "",
        "Both tools merge the same tiny random checkpoints, as transformers writes them. *Linear* "
        "is an average of two siblings, *slices* a stack of layers [0, 2) of one and [1, n) of the "
        "other, for models with a single stack. *Right* means that transformers loads the result "
        "with nothing missing, left over or of another shape, and that every number, and in a "
        "stack the kind of every layer, is the one of the inputs. *Refused* are stacks that no "
        "config.json can describe. *Loses tensors* means that the tool ended without an error.",
        "",
        "| | mergeloom | mergekit |",
        "|---|---|---|",
        *(f"| {k} | {counted(ours, k)} | {counted(theirs, k)} |" for k in ("linear", "slices")),
        "",
        "| checkpoint | class | linear: mergeloom | mergekit | slices: mergeloom | mergekit |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for name, _ in ours):
        cells = [str(results[name, kind]) if (name, kind) in results else "–"
                 for kind in ("linear", "slices") for results in (ours, theirs)]  # fmt: skip
        lines.append(f"| {name} | {TYPES[name].cls} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def placed(page: str, made: str) -> str:
    """Return the page with its section of this title replaced, or added at the end."""
    before, found, rest = page.partition(f"{TITLE}\n")
    after = rest[rest.find("\n## ") + 1 :] if found and "\n## " in rest else ""
    return f"{before.rstrip()}\n\n{made}{after and chr(10)}{after}".lstrip()


def main() -> None:
    """Write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page")
    parser.add_argument("--only", nargs="*", default=list(TYPES), metavar="NAME")
    parser.add_argument("--peer-venv", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    peer = chosen(arguments.peer_venv)
    with tempfile.TemporaryDirectory() as work:
        theirs, ours = run(Path(work), peer, arguments.only)
    page = arguments.out.read_text() if arguments.out.exists() else ""
    arguments.out.write_text(placed(page, section(theirs, ours, peer)))
    print(arguments.out)


if __name__ == "__main__":
    main()

"""How much of a cold merge the disk is busy: between its first and its last piece, with Linux.

    .venv/bin/python benchmarks/cold.py                  # all methods of core.py, 600M
    .venv/bin/python benchmarks/cold.py --methods slerp --repeats 5

`core.py merge --cold` compares seconds with those of plain reads and writes, which on a shared
machine vary from run to run. This asks the kernel for how long the disk had something to do
(`io_ticks` of /sys/class/block/*/stat). Busy means that at least one request was under way: a low
share shows that a merge keeps the disk waiting, a high one does not show that no other reader would
get more from it. For that compare with the floors of `core.py merge --cold`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mergeloom
from benchmarks.machine import disk
from benchmarks.paths import BENCH
from benchmarks.process import chill
from benchmarks.recipes import CORE, METHODS, Method, input_files, recipe_text
from benchmarks.synthetic import SIZES, synthetic_set

SECTOR = 512


def disk_counters(device: str) -> tuple[float, int]:
    """Return (seconds it was busy, bytes read) of a disk since the system started."""
    numbers = Path(f"/sys/class/block/{Path(device).name}/stat").read_text().split()
    return int(numbers[9]) / 1000, int(numbers[2]) * SECTOR


def busy(method: Method, size: str, threads: int) -> tuple[float, float, float]:
    """Return (share of the time that the disk was busy, bytes it read a second, seconds)."""
    folders = synthetic_set(size)
    device = disk(BENCH)["device"]
    out = BENCH / "work" / "cold"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    share, how = chill(input_files(method, folders))
    if share > 0.01:
        raise SystemExit(f"{share:.0%} of the inputs stay in the page cache ({how})")
    seen: list[tuple[float, float, int]] = []
    mergeloom.merge(
        recipe_text(method.text, folders, SIZES[size].num_hidden_layers),
        out,
        threads=threads,
        progress=lambda _read, _written: seen.append((time.perf_counter(), *disk_counters(device))),
    )
    shutil.rmtree(out)
    first, last = min(seen), max(seen)
    seconds = last[0] - first[0]
    return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds, seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how busy the disk is during a cold merge")
    parser.add_argument("--methods", nargs="+", choices=CORE, default=list(CORE))
    parser.add_argument("--size", choices=SIZES, default="600M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.methods:
        runs = [busy(METHODS[name], arguments.size, arguments.threads)
                for _ in range(arguments.repeats)]  # fmt: skip
        shares = ", ".join(f"{share:.0%}" for share, _, _ in runs)
        rates = ", ".join(f"{rate / 1e9:.2f}" for _, rate, _ in runs)
        print(f"{name:16} disk busy {shares}; {rates} GB/s")


if __name__ == "__main__":
    main()

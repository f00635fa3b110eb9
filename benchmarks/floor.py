"""The floor of a merge: read the bytes it needs once, write the bytes it makes once, no more.

Run by `core.py` as a child process with a JSON specification on the command line:

    {"reads": FILE, "write": bytes, "out": path, "threads": 1}

where FILE is JSON: [[path, offset, length], ...]

Each thread takes a contiguous part of the reads, in order, and of the output. It reads with preadv
into one reused buffer and, in step, writes the same buffer with pwrite: plain buffered system
calls, no memory map, no direct I/O, no fsync, no preallocation. Prints {"seconds": ...} from the
first read to the last write.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

# Large enough that the interpreter costs nothing, small enough to stay in a core's L2 cache.
CHUNK = 1 << 20


def chunks(reads: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Cut the ranges into pieces of at most `CHUNK` bytes."""
    return [
        (path, start, min(CHUNK, offset + length - start))
        for path, offset, length in reads
        for start in range(offset, offset + length, CHUNK)
    ]


def work(
    pieces: list[tuple[str, int, int]], handles: dict[str, int], out: int, start: int, end: int
) -> None:
    """Read `pieces` and write the output's bytes from `start` to `end`, spread evenly between."""
    buffer = memoryview(bytearray(CHUNK))
    position = start
    for number, (path, offset, length) in enumerate(pieces, start=1):
        if os.preadv(handles[path], [buffer[:length]], offset) != length:
            raise EOFError(f"{path} is too short")
        due = start + (end - start) * number // len(pieces)
        while due - position >= CHUNK or (number == len(pieces) and position < end):
            position += os.pwrite(out, buffer[: min(CHUNK, end - position)], position)


def floor(reads: list[tuple[str, int, int]], write: int, out: str, threads: int) -> float:
    """Return the seconds from the first read to the last write."""
    pieces = chunks(reads)
    handles = {path: os.open(path, os.O_RDONLY) for path in {path for path, _, _ in reads}}
    sink = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    share = [n * len(pieces) // threads for n in range(threads + 1)]
    place = [n * write // threads for n in range(threads + 1)]
    workers = [
        threading.Thread(
            target=work,
            args=(pieces[share[n] : share[n + 1]], handles, sink, place[n], place[n + 1]),
        )
        for n in range(threads)
    ]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def main() -> None:
    """Run the specification given as the only argument."""
    specification = json.loads(sys.argv[1])
    with open(specification["reads"], encoding="utf-8") as file:  # too long for an argument
        reads = json.load(file)
    seconds = floor(reads, specification["write"], specification["out"], specification["threads"])
    if os.path.getsize(specification["out"]) != specification["write"]:
        raise SystemExit("the floor did not write all bytes")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()

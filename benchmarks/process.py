"""Run a command as a whole process and measure it; put files into or out of the page cache.

The measuring process must stay small: on Linux a child's `ru_maxrss` starts at the size of the
process that forked it, so this module and its callers import only the standard library.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
SAMPLE_SECONDS = 0.05
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Measured:
    """What one run of a whole process took.

    `peak_rss` is `ru_maxrss` of wait4: the largest resident size of the process or of any one
    descendant it waited for. It counts mapped file pages. `peak_tree_rss` and `peak_anonymous`
    are sums over the process tree, sampled every 50 ms, the second without file pages: what the
    run holds that the kernel cannot take back. Bytes and seconds.
    """

    wall: float
    user: float
    system: float
    peak_rss: int
    peak_tree_rss: int
    peak_anonymous: int
    processes: int
    code: int
    output: str

    @property
    def cpu(self) -> float:
        """User plus system time of the process and the descendants it waited for."""
        return self.user + self.system


def process_tree(root: int) -> list[int]:
    """Return `root` and all its living descendants."""
    found = [root]
    for pid in found:  # grows while it is walked
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                found.extend(int(child) for child in children.split())
        except OSError:
            continue  # it ended in the meantime
    return found


def resident(pid: int) -> tuple[int, int]:
    """Return (resident bytes, anonymous resident bytes) of a process; zeros when it has ended."""
    total = anonymous = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total = int(line.split()[1]) * 1024
            elif line.startswith("RssAnon:"):
                anonymous = int(line.split()[1]) * 1024
    except OSError:
        return 0, 0
    return total, anonymous


class TreeSampler(threading.Thread):
    """Watches a process tree's memory until stopped and keeps the peaks."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.stopped = threading.Event()
        self.rss = self.anonymous = self.processes = 0

    def run(self) -> None:
        """Sample until `stopped` is set."""
        while not self.stopped.wait(SAMPLE_SECONDS):
            tree = process_tree(self.root)
            sizes = [resident(pid) for pid in tree]
            self.rss = max(self.rss, sum(size for size, _ in sizes))
            self.anonymous = max(self.anonymous, sum(size for _, size in sizes))
            self.processes = max(self.processes, len(tree))


def run(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 3600.0,
) -> Measured:
    """Run a command to its end and measure it; its output goes to `log`.

    A run past `timeout` seconds is killed and reported with its negative signal as code.
    """
    with log.open("wb") as sink:
        started = time.perf_counter()
        # S603: the benchmark's own commands.
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        sampler = TreeSampler(child.pid)
        sampler.start()
        guard = threading.Timer(timeout, os.kill, (child.pid, signal.SIGKILL))
        guard.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        guard.cancel()
        sampler.stopped.set()
        sampler.join()
        child.returncode = os.waitstatus_to_exitcode(status)  # wait4 took it from Popen
    return Measured(
        wall=wall,
        user=usage.ru_utime,
        system=usage.ru_stime,
        peak_rss=usage.ru_maxrss * 1024,
        peak_tree_rss=sampler.rss,
        peak_anonymous=sampler.anonymous,
        processes=sampler.processes,
        code=child.returncode,
        output=log.read_text("utf-8", errors="replace"),
    )


def cached_share(paths: Iterable[Path]) -> float:
    """Return the share (0..1) of the files' pages that are in the page cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = there = 0
    for path in paths:
        size = path.stat().st_size
        descriptor = os.open(path, os.O_RDONLY)
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        os.close(descriptor)
        number = -(-size // mmap.PAGESIZE)
        flags = ctypes.create_string_buffer(number)
        if libc.mincore(address, size, flags) != 0:
            raise OSError(ctypes.get_errno(), f"mincore failed on {path}")
        libc.munmap(address, size)
        pages += number
        there += number - flags.raw.count(b"\0")
    return there / pages if pages else 0.0


def warm(paths: Sequence[Path]) -> float:
    """Read all files once, so that they are in the page cache; return their cached share."""
    buffer = bytearray(4 * MIB)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return cached_share(paths)


def chill(paths: Sequence[Path]) -> tuple[float, str]:
    """Take the files out of the page cache; return (cached share left, mechanism used).

    POSIX_FADV_DONTNEED acts on these files alone, so programs and libraries stay warm and the run
    measures the models' disk, not the loading of torch. Only if pages stay (another process maps
    them) and we are root does drop_caches empty the whole cache.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # a dirty page cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    left = cached_share(paths)
    if left < 0.01 or not os.access(DROP_CACHES, os.W_OK):
        return left, "posix_fadvise(DONTNEED)"
    DROP_CACHES.write_text("1\n")
    return cached_share(paths), "posix_fadvise(DONTNEED) and drop_caches"

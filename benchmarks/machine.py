"""Facts about the machine and the versions, for the head of a report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("torch", "numpy", "safetensors", "transformers", "mergekit")
PROBE = """
import importlib.metadata as m, json, sys
def v(n):
    try: return m.version(n)
    except m.PackageNotFoundError: return None
print(json.dumps({"python": sys.version.split()[0], **{n: v(n) for n in sys.argv[1:]}}))
"""


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def memory_bytes() -> int:
    """Return the size of the main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def disk(path: Path) -> dict[str, str]:
    """Return device, file system and kind of the disk below `path`."""
    best = ("", "unknown", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, mount, kind = line.split()[:3]
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, device, kind)
    name = Path(best[1]).name
    rotational = Path(f"/sys/class/block/{name}/queue/rotational")
    kind = "unknown"
    if name.startswith(("vd", "xvd")):
        kind = "virtual"  # a guest is told it rotates whatever is below
    elif rotational.exists():
        kind = "rotating" if rotational.read_text().strip() == "1" else "solid state"
    return {"device": best[1], "filesystem": best[2], "kind": kind}


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str | None]:
    """Return the installed versions in another Python's environment."""
    done = subprocess.run(
        [str(python), "-c", PROBE, *packages], capture_output=True, text=True, check=False
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def facts(work: Path, ours: Path, peer: Path | None) -> dict[str, object]:
    """Return date, machine and versions of both sides."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "disk": disk(work),
        "kernel": platform.release(),
        "load_at_start": os.getloadavg()[0],
        "ours": versions(ours.parent / "python", ("mergeloom", *PACKAGES[:4])),
        "peer": versions(peer.parent / "python", PACKAGES) if peer else None,
    }

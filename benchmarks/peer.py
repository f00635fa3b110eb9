"""The peer, mergekit, as a program in a virtual environment of its own.

    python benchmarks/peer.py setup [--peer-venv PATH]

It is only ever run; none of its code is imported or read here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paths import PEER_VENV

VERSION = "0.1.5"
TORCH = "2.13.0"  # pinned, so that both sides are measured on the torch we develop with
VARIABLE = "MERGELOOM_PEER_VENV"


def chosen(path: Path | None) -> Path:
    """Return the peer's environment: the argument, else $MERGELOOM_PEER_VENV, else the cache."""
    return path or Path(os.environ.get(VARIABLE, PEER_VENV))


def program(path: Path | None) -> Path | None:
    """Return the peer's `mergekit-yaml`, or None when it is not set up."""
    found = chosen(path) / "bin" / "mergekit-yaml"
    return found if found.exists() else None


def setup(venv: Path) -> None:
    """Create the environment and install the pinned versions, unless they are there."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    for requirement in (f"torch=={TORCH}", f"mergekit=={VERSION}"):
        subprocess.run([str(python), "-m", "pip", "install", "-q", requirement], check=True)


def main() -> None:
    """Set the peer up."""
    parser = argparse.ArgumentParser(description="set up mergekit in its own environment")
    parser.add_argument("action", choices=["setup"])
    parser.add_argument("--peer-venv", type=Path, metavar="PATH")
    venv = chosen(parser.parse_args().peer_venv)
    setup(venv)
    print(venv)


if __name__ == "__main__":
    main()

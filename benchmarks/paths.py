"""Where the benchmarks keep their data: everything below `.cache/`, which git ignores."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
REAL = CACHE / "real"
BENCH = CACHE / "bench"
PEER_VENV = CACHE / "peer-venv"

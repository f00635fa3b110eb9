"""Checking a recipe must not wait for heavy libraries."""

from __future__ import annotations

import subprocess
import sys


def test_no_heavy_import_and_only_types_and_errors_of_our_own():
    code = "import sys, mergeloom.recipe; print(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "huggingface_hub", "transformers", "click"} & set(found)
    ours = {name.split(".")[1] for name in found if name.startswith("mergeloom.")}
    assert {name for name in ours if not name.startswith("_")} <= {"recipe", "types", "errors"}

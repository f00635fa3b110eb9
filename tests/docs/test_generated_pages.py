"""The generated pages are what the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["methods.md", "commands.md"])
def test_a_generated_page_is_up_to_date(generate: ModuleType, page: str) -> None:
    assert page not in generate.stale(), "run make docs"


def test_every_method_has_a_section() -> None:
    from mergeloom.methods import METHODS

    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"\n## {name}\n" in text

"""The generated pages are what the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mergeloom.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generate: ModuleType) -> None:
    assert not generate.stale(), "run make docs"


def test_the_pages_are_those_of_the_methods_there_are() -> None:
    assert {page.stem for page in (DOCS / "methods").iterdir()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_all_that_is_known_of_its_method(name: str) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    method = METHODS[name]
    assert method.formula_text.strip()
    for text in (method.summary, method.use, method.formula_text, method.example, method.differs):
        assert text.strip() in page
    assert "## On the demo's models" in page, "run make bench-quality"

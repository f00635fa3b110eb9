"""The generated pages are what the code says now."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mergeloom.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))  # as Python does for a script
    yield importlib.import_module("generate")
    sys.path.remove(str(DOCS))


def test_generated_pages_are_up_to_date(generate: ModuleType) -> None:
    assert not generate.stale(), "run make docs"


def test_the_pages_are_those_of_the_methods_there_are() -> None:
    assert {page.stem for page in (DOCS / "methods").iterdir()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_all_that_is_known_of_its_method(name: str) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    method = METHODS[name]
    assert method.formula_text.strip()
    assert f"(methods/{name}.md)" in (DOCS / "methods.md").read_text(encoding="utf-8")
    for text in (method.summary, method.use, method.formula_text, method.example, method.differs):
        assert text.strip() in page
    assert "## On the demo's models" in page, "run make bench-quality"


def test_every_picture_is_small_and_shown_and_every_method_has_one(
    generate: ModuleType,
) -> None:
    pictures = sys.modules["method_pages"].PICTURES
    shown = {file for file, _, _ in pictures}
    assert {file.name for file in (DOCS / "pictures").iterdir()} == shown
    assert all((DOCS / "pictures" / file).stat().st_size < 60_000 for file in shown)
    assert {name for _, names, _ in pictures for name in names} == set(METHODS) - {"passthrough"}

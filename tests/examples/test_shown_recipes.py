"""Every recipe in README.md and docs/ can be planned on models that have the names it uses.

Those marked ``yaml recipe`` need files of another kind and are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import mergeloom

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.M | re.S)
MODEL = re.compile(r"\b(?:org|HuggingFaceTB)/[\w-]+")


def shown() -> list[Any]:
    """The complete recipes, as test cases named by page and line."""
    cases = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            if "merge_method" in found[1]:
                line = text.count("\n", 0, found.start()) + 1
                cases.append(pytest.param(found[1], id=f"{page.name}:{line}"))
    return cases


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in {n for page in PAGES for n in MODEL.findall(page.read_text(encoding="utf-8"))}:
        make = tiny_models.vision_language if "vlm" in name else tiny_models.llama
        make(root / name)
        (root / name / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}"
                                                         "{% endfor %}")  # fmt: skip
    (root / "src").symlink_to(ROOT / "src")  # the demo's models
    return root


@pytest.mark.parametrize("recipe", shown())
def test_a_recipe_that_is_shown_can_be_planned(
    recipe: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = mergeloom.plan(recipe)
    assert any(job.method for job in plan.jobs)

"""What the documentation shows is true: recipes load, commands and links exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import mergeloom
from mergeloom.cli.main import mergeloom as program
from mergeloom.cli.peers import mergekit_command, mergekitty_command

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)")
HEADING = re.compile(r"^#+ +(.+)$", re.M)
COMMAND = re.compile(r"^\$? ?(mergeloom|mergekit-yaml|mergekitty-yaml)\b(.*)$", re.M)


def blocks(*languages: str) -> list[Any]:
    """The code blocks of these languages on every page, as test cases named by their place."""
    found_blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            if found[1] in languages:
                line = text.count("\n", 0, found.start()) + 1
                found_blocks.append(pytest.param(found[2], id=f"{page.name}:{line}"))
    return found_blocks


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_recipe_that_is_shown_can_be_used(text: str) -> None:
    if "merge_method" in text:
        mergeloom.load_recipe(text)
    else:
        list(yaml.safe_load_all(text))


@pytest.mark.parametrize("text", blocks("python"))
def test_python_that_is_shown_compiles(text: str) -> None:
    compile(text, "shown", "exec")


@pytest.mark.parametrize("text", blocks("console", "sh", "text"))
def test_a_command_that_is_shown_exists(text: str) -> None:
    for name, rest in COMMAND.findall(text):
        words = rest.partition("#")[0].partition(" > ")[0].split()
        command: click.Command = {
            "mergekit-yaml": mergekit_command,
            "mergekitty-yaml": mergekitty_command,
        }.get(name, program)
        if isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"no command {words[0]}"
            command = found
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        known |= {"--help", "-h", "--version"}
        for option in (w.partition("=")[0] for w in words if w.startswith("-")):
            assert option in known, f"{name} {words[0]} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = HEADING.findall(file.read_text(encoding="utf-8"))
            assert anchor[1:] in {slug(heading) for heading in headings}, target + anchor


def slug(heading: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def test_every_example_is_listed() -> None:
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for file in (ROOT / "examples").iterdir():
        if file.suffix in (".yml", ".py"):
            assert f"({file.name})" in listed, file.name

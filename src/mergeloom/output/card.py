"""README.md of the merged model: front matter that the hub understands, and the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergeloom.methods import METHODS
from mergeloom.planning import Plan, public_name, public_recipe
from mergeloom.types import Checkpoint

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
LINK = re.compile(r"https?://\S+")


def model_card(plan: Plan, name: str) -> str:
    """The card's text. ``name`` is the output folder's name."""
    front = yaml.safe_dump(_front_matter(plan), sort_keys=False, allow_unicode=True)
    method = METHODS[plan.recipe.merge_method]
    title = f"[{method.title}]({_link(method.reference)})" if method.reference else method.title
    inputs = plan.sources
    base = next((c for c in inputs if c.label == str(plan.recipe.base_model)), None)
    with_base = f", with {_shown(base)} as the base" if base and method.base != "unused" else ""
    recipe, fence = public_recipe(plan.recipe).strip(), "```"
    while fence in recipe:  # a chat template may show code
        fence += "`"
    listed = "\n".join(f"- {_shown(c)}" for c in inputs if c is not base or not with_base)
    return (
        f"---\n{front}---\n# {name}\n\n"
        "This model was merged from other language models with "
        "[mergeloom](https://github.com/mergeloom/mergeloom).\n\n"
        f"## Merge details\n\n### Method\n\n{title}{with_base}.\n\n"
        f"### Models\n\n{listed}\n\n"
        f"### Recipe\n\n{fence}yaml\n{recipe}\n{fence}\n"
    )


def _front_matter(plan: Plan) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if models := [c.label.partition("@")[0] for c in plan.sources if _is_hub(c)]:
        front["base_model"] = list(dict.fromkeys(models))
    modules = any(file.name == "modules.json" for file in plan.side_files)
    front["library_name"] = "sentence-transformers" if modules else "transformers"
    front["tags"] = ["mergekit", "merge", "mergeloom"]
    licences = [_licence(c) for c in plan.sources]
    if all(licence == licences[0] for licence in licences):
        front |= licences[0]
    return front


def _is_hub(checkpoint: Checkpoint) -> bool:
    return not checkpoint.is_local and bool(HUB_ID.match(checkpoint.label.partition("@")[0]))


def _shown(checkpoint: Checkpoint) -> str:
    """A hub model as a link, a local one by its folder's name."""
    if _is_hub(checkpoint):
        model = checkpoint.label.partition("@")[0]
        return f"[{model}](https://huggingface.co/{model})"
    return Path(public_name(checkpoint.label)).name


def _link(reference: str) -> str:
    found = LINK.search(reference)
    return found.group(0) if found else reference


def _licence(checkpoint: Checkpoint) -> dict[str, str]:
    """The licence that an input's own card states: ``other`` is told apart by name and link."""
    front = _front(checkpoint.side_folder / "README.md")
    keys = ("license", "license_name", "license_link")
    stated = {key: value for key in keys if isinstance(value := front.get(key), str)}
    return stated if "license" in stated else {}


def _front(path: Path) -> Mapping[str, Any]:
    """The YAML front matter of a card; empty when there is none or it is broken."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}

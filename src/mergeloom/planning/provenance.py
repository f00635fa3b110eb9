"""Where an output came from: recipe, version, seed and inputs, in every shard's metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath

from mergeloom._version import __version__
from mergeloom.planning.plan import Plan, Shard
from mergeloom.planning.shards import header
from mergeloom.types import Checkpoint, ModelReference, Recipe

LOCAL_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|\.\.?[\\/])")
UNKNOWN = "0" * 64


def public_name(text: str) -> str:
    """A model's name without the folders of this machine: the last part of a local path."""
    if not LOCAL_PATH.match(text):
        return text
    return PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name


def public_recipe(recipe: Recipe) -> str:
    """The recipe's text with local paths shortened to their last part."""
    text = recipe.text
    references: list[ModelReference] = list(recipe.models())
    if recipe.tokenizer and isinstance(recipe.tokenizer.source, ModelReference):
        references.append(recipe.tokenizer.source)
    paths = {p for r in references for p in (r.path, r.lora) if p}
    for path in sorted(paths, key=len, reverse=True):
        for written in (path, path.replace("\\", "\\\\")):
            text = text.replace(written, public_name(path))
    return text


def metadata(plan: Plan, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The ``__metadata__`` of every shard. ``fingerprints`` maps an input's label to 64 hex digits.

    Its length does not depend on the fingerprints, so the shard layout is known before them.
    """
    inputs = [_input(c, fingerprints.get(c.label, UNKNOWN)) for c in plan.inputs]
    provenance = {
        "version": __version__,
        "seed": plan.seed,
        "inputs": inputs,
        "recipe": public_recipe(plan.recipe),
    }
    return {"format": "pt", "mergeloom": json.dumps(provenance)}


def shard_header(plan: Plan, shard: Shard, fingerprints: Mapping[str, str] | None = None) -> bytes:
    """The bytes before a shard's data."""
    return header(shard, plan.jobs, metadata(plan, fingerprints or {}))


def _input(checkpoint: Checkpoint, fingerprint: str) -> dict[str, str]:
    """A hub input by its commit, a local one by the fingerprint of its weight files."""
    name = {"name": public_name(checkpoint.label)}
    if checkpoint.revision:
        return {**name, "revision": checkpoint.revision}
    return {**name, "fingerprint": fingerprint}

"""Where an output came from: recipe, version, seed and inputs, in every shard's metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath

from mergeloom._version import __version__
from mergeloom.planning.plan import Plan, Shard
from mergeloom.planning.shards import header
from mergeloom.types import Checkpoint, Recipe

LOCAL_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|\.\.?[\\/])")
FOLDERS = re.compile(r"(?<![\w.:/~*])(?:~?/|[A-Za-z]:[\\/])(?:[^\s/\\'\"#,]+[\\/])+")
"""The folders in front of the last part of an absolute path."""

ABSOLUTE = re.compile(r"(/|~[\\/]|[A-Za-z]:[\\/]|\\\\)[^\n]*[\\/][^\n\\/]+")
"""A path that nothing reads any more: in a list of names for YAML, or under an ignored key."""

COMMENT = re.compile(r"(?:(?<=\s)|^)#.*", re.MULTILINE)
UNKNOWN = "0" * 64


def public_name(text: str) -> str:
    """A model's name without the folders of this machine: the last part of a local path."""
    if not LOCAL_PATH.match(text):
        return text
    return PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name


def public_recipe(recipe: Recipe) -> str:
    """The recipe's text with local paths shortened to their last part."""
    every = (*recipe.chain, recipe)
    references = [r for one in every for r in (*one.models(), *one.lenders())]
    paths = {p for r in references for p in (r.path, r.lora) if p}
    paths |= {value for _, _, value in _scalars(recipe.text) if ABSOLUTE.fullmatch(value)}
    return _public_text(recipe.text, tuple(sorted(paths, key=lambda p: (-len(p), p))))


@lru_cache(maxsize=16)
def _public_text(text: str, paths: tuple[str, ...]) -> str:
    """``text`` with each of ``paths``, the longest first, shortened wherever it stands."""
    for start, end, value in reversed(_scalars_spelt_otherwise(text)):
        shown = value
        for path in paths:
            shown = shown.replace(path, public_name(path))
        if shown != value:
            text = text[:start] + json.dumps(shown, ensure_ascii=False) + text[end:]
    for path in paths:
        text = text.replace(path, public_name(path))
    return _without_folders_in_comments(text)


def _without_folders_in_comments(text: str) -> str:
    """``text`` with the absolute paths in its comments shortened to their last part."""
    if not FOLDERS.search(text):
        return text
    spans = [(a, b) for a, b, _ in _scalars(text) if FOLDERS.search(text, a, b)]
    for found in reversed(list(COMMENT.finditer(text))):
        # A '#' inside a quoted text or a block is no comment.
        if not any(a <= found.start() < b for a, b in spans):
            text = text[: found.start()] + FOLDERS.sub("", found[0]) + text[found.end() :]
    return text


def _scalars(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, value) of every YAML scalar in the text."""
    import yaml

    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken) and token.start_mark and token.end_mark:
            yield token.start_mark.index, token.end_mark.index, token.value


def _scalars_spelt_otherwise(text: str) -> list[tuple[int, int, str]]:
    """(start, end, value) of the YAML scalars that do not stand in the text as their value.

    A path is folded over two lines, or has escapes or doubled quotes in it.
    """
    found = []
    for start, end, value in _scalars(text):
        written = text[start:end].rstrip()  # the mark of a block's end is behind its line
        if value not in written:
            found.append((start, start + len(written), value))
    return found


def metadata(plan: Plan, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The ``__metadata__`` of every shard. ``fingerprints`` maps an input's label to 64 hex digits.

    Its length does not depend on the fingerprints, so the shard layout is known before them.
    """
    inputs = [_input(c, fingerprints.get(c.label, UNKNOWN)) for c in plan.sources]
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

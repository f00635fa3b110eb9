"""Where a model is: on this machine or on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mergeloom.checkpoint.file_kinds import FOREIGN, WEIGHT_SUFFIXES
from mergeloom.checkpoint.report import Report
from mergeloom.types import ModelReference

_HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,249}", re.ASCII)


@dataclass(frozen=True)
class HubModel:
    """A repository on the hub."""

    repo_id: str
    revision: str | None


def locate(reference: ModelReference, report: Report) -> Path | HubModel | None:
    """Find the folder, the file or the repository, or report why there is none.

    What exists under the literal text is used first, even with ``@`` or ``+`` inside.
    """
    text = str(reference)
    if not reference.path:
        report.error("a model has an empty name")
        return None
    literal = _expand(text)
    if os.path.exists(literal):
        return Path(literal)
    plain = _expand(reference.path)
    exists = os.path.exists(plain)
    if not exists and looks_local(reference.path):
        _report_missing(reference, report)
        return None
    if reference.lora is not None:
        report.error(
            f"LoRA adapters are not supported yet in this version: {text}; merge the adapter into "
            "the model first (peft merge_and_unload)"
        )
        return None
    if exists:
        if reference.revision is not None:
            report.warn(f"{reference.path} is on this machine: its revision is not looked at")
        return Path(plain)
    if not _HUB_ID.fullmatch(reference.path):
        report.error(
            f"{text[:200]} does not exist, and is no id of the hub either (organisation/name)",
            _nearest(Path(plain)) or _punctuation(text),
        )
        return None
    if not _REVISION.fullmatch(reference.revision or "main"):
        report.error(
            f"{reference.path} is not on this machine, and {str(reference.revision)[:80]!r} is no "
            "revision of the hub (a branch, a tag or a commit)",
            _punctuation(text),
        )
        return None
    return HubModel(reference.path, reference.revision)


def looks_local(path: str) -> bool:
    """Whether it can only be meant as a path on this machine."""
    return (
        os.path.isabs(path)
        or path in (".", "..")
        or path.startswith(("./", "../", "~", "/"))
        or "\\" in path
        or re.match(r"[A-Za-z]:", path) is not None
        or path.rstrip("/").count("/") > 1
        or path.endswith("/")
        or path.lower().endswith((*WEIGHT_SUFFIXES, *FOREIGN))
    )


def _expand(path: str) -> str:
    return os.path.expanduser(path)


def _report_missing(reference: ModelReference, report: Report) -> None:
    text = str(reference)
    plain = Path(_expand(reference.path))
    nearest = _nearest(plain)
    if nearest and reference.path.startswith("./"):  # which Path takes away
        nearest = nearest.replace(": ", ": ./", 1)
    hints = (nearest, _punctuation(text) if text != reference.path else "")
    report.error(f"{text} does not exist (looks like a local path)", ". ".join(filter(None, hints)))


def _punctuation(text: str) -> str:
    """What ``+`` and ``@`` mean, for those whose folder has one in its name."""
    if "+" in text:
        return "'+' separates a LoRA; write {model: {path: ...}} for a path with a '+' in it"
    if "@" in text:
        return "'@' separates a revision; write {model: {path: ...}} for a path with an '@' in it"
    return ""


def _nearest(path: Path) -> str:
    """``Nearest: …``: a neighbour whose name is like the first part of the path that is wrong."""
    import difflib

    parent, rest = path.parent, [path.name]
    while not parent.is_dir() and parent != parent.parent:
        rest.insert(0, parent.name)
        parent = parent.parent
    try:
        names = {entry.name.lower(): entry.name for entry in islice(os.scandir(parent), 5000)}
    except OSError:
        return ""  # a folder that may not be listed has no neighbours to offer
    for name in difflib.get_close_matches(rest[0].lower(), names, n=3, cutoff=0.6):
        whole = parent.joinpath(names[name], *rest[1:])
        if whole.exists():
            return f"Nearest: {whole}"
    return ""


def nearest_local(path: str) -> str:
    """The same for a name that the hub does not know: it may be a mistyped folder."""
    return _nearest(Path(_expand(path)))

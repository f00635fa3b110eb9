"""Runs a plan into a folder: weights, then everything a loader or a reader wants beside them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from mergeloom.checkpoint import fingerprint
from mergeloom.engine.journal import Journal
from mergeloom.engine.kernel import unwritable
from mergeloom.engine.kernels import arithmetic
from mergeloom.engine.run import Report, Settings, run
from mergeloom.engine.sink import ShardFiles
from mergeloom.errors import OutputError, Problem
from mergeloom.output.card import model_card
from mergeloom.output.directory import (
    JOURNAL,
    building,
    check_space,
    clear,
    move_into_place,
)
from mergeloom.planning import Plan, index, shard_header, weights_stem


@dataclass(frozen=True)
class Written:
    """What writing a plan did. ``resumed`` counts tensors that an earlier run had finished."""

    report: Report
    resumed: int


def write(plan: Plan, out: Path, settings: Settings, *, card: bool = True) -> Written:
    """Run a plan and put the complete result at ``out``.

    The result is built in a hidden folder beside ``out``. If the process dies, the same plan
    continues there; another plan, or another kind of device, starts over.

    Raises:
        MergeError: a tensor cannot be computed.
        OutputError: the target cannot be written, or the disk is too small.
    """
    check_space(out, plan.bytes_out + plan.side_bytes)
    with building(out) as partial:
        # Bytes of one tensor and the next must not come from arithmetics that round differently.
        digest = f"{plan.digest} {arithmetic(settings.device)}"
        if not _started_by(partial, plan, digest):
            clear(partial)
        journal = Journal(partial / JOURNAL, digest)
        try:
            report = _weights(plan, partial, journal, settings)
        finally:
            journal.close()
        try:
            _side_files(plan, partial)
            _texts(plan, partial, out.resolve().name, card=card)
        except OSError as error:
            raise unwritable(error.errno or 0) from error
        move_into_place(partial, out)
        return Written(report, len(journal.finished))


def _started_by(partial: Path, plan: Plan, digest: str) -> bool:
    """Whether the folder's journal was begun under this digest, and its weights are there."""
    if not Journal.belongs(partial / JOURNAL, digest):
        return False
    sizes = {s.file: len(shard_header(plan, s)) + s.data_bytes for s in plan.shards}
    files = {name: partial / name for name in sizes}
    return all(f.is_file() and f.stat().st_size == sizes[name] for name, f in files.items())


def _weights(plan: Plan, folder: Path, journal: Journal, settings: Settings) -> Report:
    fingerprints = {c.label: fingerprint(c) for c in plan.sources if not c.revision}
    files = ShardFiles(plan, folder, fingerprints, journal)
    try:
        report = run(plan, files, settings, journal.finished, journal.add)
        files.finish()
        return report
    finally:
        files.close()


def _side_files(plan: Plan, folder: Path) -> None:
    """Copy the donor's other files by content, keeping their places."""
    for file in plan.side_files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.content is not None:
            target.write_bytes(file.content)
            continue
        try:
            shutil.copyfile(file.root / file.name, target)
        except OSError as error:
            raise OutputError(
                Problem(str(file.root / file.name), f"cannot be copied: {error.strerror}")
            ) from error


def _texts(plan: Plan, folder: Path, name: str, *, card: bool) -> None:
    if plan.config is not None:
        text = json.dumps(plan.config, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    if listing := index(plan.shards, plan.jobs):
        index_name = f"{weights_stem(plan.config)}.safetensors.index.json"
        (folder / index_name).write_text(listing, encoding="utf-8")
    recipe, readme = folder / "mergekit_config.yml", folder / "README.md"
    if card:
        recipe.write_text(plan.recipe.text, encoding="utf-8", newline="")  # its own line ends
        readme.write_text(model_card(plan, name), encoding="utf-8")
    else:
        for stale in (recipe, readme):  # of a run with a card that was killed at its very end
            stale.unlink(missing_ok=True)

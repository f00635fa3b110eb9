"""The output's config.json and the files that come along from the donor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.architecture import config as edits
from mergeloom.architecture.layer_config import count_scope, select_layers
from mergeloom.architecture.stacks import NEXT_TOKEN_KEYS
from mergeloom.checkpoint import is_lfs_pointer
from mergeloom.errors import Problems, listing
from mergeloom.planning.models import Model, Models
from mergeloom.planning.plan import Job, Options, SideFile
from mergeloom.planning.targets import Restacked
from mergeloom.planning.tokenizer_files import MadeFiles, with_output_vocabulary
from mergeloom.planning.vocabularies import Decided
from mergeloom.types import ARITHMETIC_DTYPES, Recipe

WRITTEN_BY_US = frozenset({"config.json", "README.md", "mergekit_config.yml"})
TOKENIZER_FILES = frozenset(
    """tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
    tokenizer.model vocab.json merges.txt vocab.txt chat_template.jinja chat_template.json
    tekken.json spiece.model sentencepiece.bpe.model""".split()
)


def output_config(
    recipe: Recipe,
    models: Models,
    jobs: Sequence[Job],
    restacked: Sequence[Restacked],
    truncated: Mapping[str, int],
    decided: Decided,
    problems: Problems,
) -> dict[str, Any] | None:
    """The donor's config.json with what the merge changes; None if the donor has none."""
    donor = models.donor
    if donor.checkpoint.config is None:
        return None
    config = edits.without_quantization(donor.checkpoint.config)
    for rebuilt in restacked:
        selection = [(_scope(models[r], rebuilt), i) for r, i in rebuilt.selection]
        others = [s for s in donor.layout.stacks if s != rebuilt.stack]
        config = select_layers(config, rebuilt.stack, selection, keep=others)
        if rebuilt.stack.extra:
            config = edits.with_values(config, NEXT_TOKEN_KEYS, 0)
    if recipe.out_dtype or recipe.dtype:
        config = edits.with_dtype(config, _main_dtype(jobs))
    written = {job.name for job in jobs}
    has_head = any(head in written for head in models.heads) and donor.layout.embeddings
    # Models that all say they are tied and all store a head have one that is not the embedding:
    # Luke's. Where one of them says so and has none, or says otherwise, the new head is a new one.
    alike = all(
        m.layout.heads and edits.says_tied(m.checkpoint.config or {})
        for m in models.by_reference.values()
    )
    if has_head and (not donor.layout.heads or (edits.says_tied(config) and not alike)):
        config = edits.with_tying(config, tied=False)
    elif recipe.tie == "force" and donor.layout.embeddings:
        config = edits.with_tying(config, tied=True)
    if truncated:
        config = edits.with_values(config, ("vocab_size",), min(truncated.values()))
    return with_output_vocabulary(config, models, decided, problems)


def _main_dtype(jobs: Sequence[Job]) -> str:
    sizes: Counter[str] = Counter()
    for job in jobs:
        if job.dtype in ARITHMETIC_DTYPES:
            sizes[job.dtype] += job.nbytes
    return sizes.most_common(1)[0][0] if sizes else "F32"


def _scope(model: Model, rebuilt: Restacked) -> Mapping[str, Any]:
    """The part of a source's config that describes the layers of the rebuilt stack."""
    stack = model.stack_like(rebuilt.stack)
    config = model.checkpoint.config or {}
    return count_scope(config, stack) if stack else config


def warn_of_links(files: Sequence[SideFile], problems: Problems) -> None:
    """Warn of links out of a model's folder: their content is copied, and perhaps published."""
    for root in dict.fromkeys(file.root for file in files):
        real = root.resolve()
        # The hub's cache keeps a revision's files as links to blobs beside its snapshots.
        home = real.parent.parent if real.parent.name == "snapshots" else real
        out = [
            f"{file.name} ({path.resolve()})"
            for file in files
            if file.root == root
            and file.content is None
            and (path := root / file.name).is_symlink()
            and not path.resolve().is_relative_to(home)
        ]
        if out:
            message = "has links to files outside of it, whose content is copied"
            problems.warn(str(root), f"{message}: {listing(out, 3)}")


def check_pointers(files: Sequence[SideFile], problems: Problems) -> None:
    """Files that git-lfs has not fetched: without the tokenizer's the result would not load."""
    for file in files:
        path = file.root / file.name
        # The result of an earlier document is not there yet.
        if file.content is not None or not path.is_file():
            continue
        size = path.stat().st_size
        if size <= 1024 and is_lfs_pointer(path.read_bytes(), size):
            report = problems.error if file.name in TOKENIZER_FILES else problems.warn
            report(str(path), f"is a git-lfs pointer ({size} bytes): run git lfs pull")


def side_files(models: Models, options: Options, made: MadeFiles) -> tuple[SideFile, ...]:
    """Every file of the donor that is not weights; the tokenizer's from its chosen source.

    Files that the merge makes itself replace those of their name.
    """
    donor, source = models.donor.checkpoint, models[made.source].checkpoint
    files = {name: SideFile(source.side_folder, name, text) for name, text in made.texts.items()}
    for checkpoint, wanted in ((donor, False), (source, True)):
        for name in checkpoint.side_files:
            if name in WRITTEN_BY_US or (name in TOKENIZER_FILES) is not wanted:
                continue
            if name in files or name in made.stale or (wanted and not options.copy_tokenizer):
                continue
            files[name] = SideFile(checkpoint.side_folder, name, checkpoint.texts.get(name))
    return tuple(sorted(files.values(), key=lambda f: f.name))

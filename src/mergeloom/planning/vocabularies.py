"""Whether the inputs' vocabularies allow merging rows by index, and what is asked beyond that."""

from __future__ import annotations

from mergeloom.errors import Problems
from mergeloom.planning.models import Models, place_of
from mergeloom.types import ModelReference, Recipe
from mergeloom.vocabulary import read_tokenizer

NO_ALIGNMENT = "Building a common vocabulary is not in this version yet."


def check_vocabularies(recipe: Recipe, models: Models, problems: Problems) -> None:
    """Rows are merged by index, so equal ids must mean equal tokens."""
    donor = models.donor.checkpoint
    ours = read_tokenizer(donor)
    for reference in recipe.models():
        label = models[reference].checkpoint.label
        theirs = read_tokenizer(models[reference].checkpoint)
        if recipe.tokenizer and not theirs:
            problems.error(
                recipe.tokenizer.where,
                f"{label} has no tokenizer.json, so its vocabulary cannot be compared",
                "Remove the tokenizer setting to copy the donor's tokenizer files.",
                recipe.line(recipe.tokenizer.where),
            )
        if not ours or not theirs or ours.same(theirs):
            continue
        shared = f"{ours.shared(theirs)} of {len(ours.ids)} and {len(theirs.ids)} tokens are shared"
        if conflicts := ours.conflicts(theirs):
            problems.error(
                place_of(recipe, reference),
                f"{conflicts} token ids of {label} mean other tokens than in {donor.label}; "
                f"{shared}",
                NO_ALIGNMENT,
            )
        elif recipe.tokenizer:
            problems.error(
                recipe.tokenizer.where,
                f"the tokenizers of {label} and {donor.label} differ; {shared}",
                NO_ALIGNMENT + " Without the setting the rows are merged as they are.",
                recipe.line(recipe.tokenizer.where),
            )


def check_tokenizer_settings(recipe: Recipe, problems: Problems) -> None:
    """Refuse by name what this version cannot do yet, instead of ignoring it."""
    settings = recipe.tokenizer
    refused = []
    if settings:
        refused = [
            (f"{settings.where}.{name}", value)
            for name, value in (
                ("tokens", settings.tokens),
                ("pad_to_multiple_of", settings.pad_to_multiple_of),
            )
        ]
        if isinstance(settings.source, ModelReference) and settings.source not in recipe.models():
            problems.error(
                settings.where, f"{settings.source} is not a model of this merge",
                NO_ALIGNMENT, recipe.line(settings.where),
            )  # fmt: skip
    for where, value in (*refused, ("chat_template", recipe.chat_template)):
        if value:
            problems.error(
                where, "is not in this version yet",
                "Remove it; the donor's tokenizer and chat template are copied unchanged.",
                recipe.line(where),
            )  # fmt: skip


def warn_embed_slerp(recipe: Recipe, problems: Problems) -> None:
    """A parameter of old recipes that belongs to tokenizer alignment."""
    if "embed_slerp" in recipe.parameters:
        problems.warn(
            "parameters.embed_slerp",
            "is not in this version yet; embeddings are merged like other tensors",
            line=recipe.line("parameters.embed_slerp"),
        )

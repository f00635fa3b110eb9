"""Whether the inputs are models of one kind, and how far two kinds have the same tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergeloom.architecture import Layout, is_buffer
from mergeloom.architecture.stacks import family
from mergeloom.errors import Problems, first_few
from mergeloom.planning.checks import size_differences
from mergeloom.planning.jobs import JobMaker
from mergeloom.planning.models import Model, Models, place_of
from mergeloom.planning.plan import Job, Options
from mergeloom.types import ModelReference, Recipe

FIELDS = ("model_type", "architectures")


@dataclass(frozen=True)
class Match:
    """How a model's tensors compare with the donor's, in layers that both have and outside them.

    ``matched`` counts those of one shape, ``unmatched`` are the names of the others on both sides.
    """

    matched: int
    unmatched: tuple[str, ...]
    text_agrees: bool


def check_kinds(recipe: Recipe, models: Models, options: Options, problems: Problems) -> None:
    """Refuse models of different kinds unless their tensors show that they belong together.

    A text model and the text part of a larger one do, and so do models whose tensors all have
    the same names and shapes.
    """
    donor = models.donor
    for reference, model in models.by_reference.items():
        differing = _differing(donor, model)
        if not differing:
            continue
        match = match_with_donor(models, reference)
        label = model.checkpoint.label
        if match.text_agrees and _is_composite(donor.layout) != _is_composite(model.layout):
            continue
        if not match.unmatched:
            problems.warn(
                label,
                f"is another kind of model than {donor.checkpoint.label} "
                f"({differing}), but their tensors have the same names and shapes",
            )
            continue  # fmt: skip
        message = (
            f"{label} is another kind of model than {donor.checkpoint.label}: {differing}; "
            f"{match.matched} tensors match and {len(match.unmatched)} do not: "
            f"{first_few(match.unmatched)}"
        )
        if sizes := size_differences(donor, model):
            message += f"; {sizes}"
        where = place_of(recipe, reference)
        if options.allow_crimes:
            problems.warn(where, message, line=recipe.line(where))
            continue
        problems.error(
            where,
            message,
            "--allow-crimes merges the tensors whose names and shapes match and copies the others "
            "from the base.",
            recipe.line(where),
        )


def check_crimes(maker: JobMaker, jobs: Sequence[Job]) -> None:
    """Refuse a merge in which every tensor would be copied."""
    if maker.unmatched and not any(job.method for job in jobs):
        maker.problems.error("--allow-crimes", "not one tensor of these models matches")


def match_with_donor(models: Models, reference: ModelReference) -> Match:
    """Compare a model with the donor tensor by tensor. Rows of vocabularies may differ."""
    donor, model = models.donor.layout, models[reference]
    matched, unmatched = 0, []
    text_agrees = donor.main is not None and model.layout.main is not None
    used: set[str] = set()
    for name in _common(donor, model, ours=True):
        source = models.find(reference, name)
        used.update(source.names if source else ())
        if source and _same(donor, name, model.view(source).shape):
            matched += 1
            continue
        unmatched.append(name)
        text_agrees = text_agrees and donor.place(name).stack != donor.main
    extra = [n for n in _common(donor, model, ours=False) if n not in used]
    in_main = model.layout.main
    text_agrees = text_agrees and all(model.layout.place(n).stack != in_main for n in extra)
    return Match(matched, (*unmatched, *extra), text_agrees)


def _common(donor: Layout, model: Model, *, ours: bool) -> Iterator[str]:
    """The tensors of the donor, or of the model, without layers that the other has not got."""
    mine, yours = (donor, model.layout) if ours else (model.layout, donor)
    pairs = model.alignment.stacks.items()
    partner = dict(pairs) if ours else {two: one for one, two in pairs}
    lengths = {stack.prefix: stack.length + stack.extra for stack in yours.stacks}
    for name in mine.shapes:
        place = mine.place(name)
        if is_buffer(name) or place.role == "head":
            continue
        other = partner.get(place.stack.prefix) if place.stack else None
        if other is None or place.index < lengths[other]:
            yield name


def _same(donor: Layout, name: str, shape: tuple[int, ...]) -> bool:
    ours = donor.shapes[name]
    rows = 1 if donor.place(name).role == "embedding" else 0
    return ours[rows:] == shape[rows:]


def _differing(donor: Model, model: Model) -> str:
    """``model_type mistral vs llama``; empty for two of one kind, or where it is not said."""
    ours, theirs = donor.checkpoint.config or {}, model.checkpoint.config or {}
    if not ours.get("model_type") or not theirs.get("model_type"):
        return ""
    if ours["model_type"] == theirs["model_type"]:
        return ""
    return ", ".join(
        f"{key} {_shown(theirs[key])} vs {_shown(ours[key])}"
        for key in FIELDS
        if key in ours and key in theirs and ours[key] != theirs[key]
    )


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_composite(layout: Layout) -> bool:
    """Whether it has a stack that is no text: a vision tower, an audio encoder."""
    return any(family(stack.prefix) != "text" for stack in layout.stacks)

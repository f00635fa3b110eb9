"""The models of a recipe: opened, understood, and their tensors matched with the donor's."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mergeloom.architecture import Alignment, Layout, Source, Stack, align, plain, understand
from mergeloom.architecture.config import says_tied
from mergeloom.architecture.rows import Rows
from mergeloom.checkpoint import StoredTensor, alike, open_checkpoint, overridden, rearrange
from mergeloom.errors import Problems
from mergeloom.planning.plan import Options, Plan
from mergeloom.planning.provenance import shard_header
from mergeloom.planning.renaming import renamed
from mergeloom.types import Checkpoint, ModelReference, Recipe, View


@dataclass(frozen=True)
class Model:
    """An opened input: its checkpoint, its layout, and what the donor's tensors are in it."""

    checkpoint: Checkpoint
    layout: Layout
    alignment: Alignment

    def view(self, source: Source) -> View:
        """The view of a tensor that the alignment found in this model."""
        views = [self.checkpoint.tensors[name] for name in source.names]
        if source.shape is None:
            return views[0]
        return rearrange(views, source.shape, source.axes, source.offset)

    def stack_like(self, stack: Stack) -> Stack | None:
        """This model's stack that corresponds to a stack of the donor."""
        prefix = self.alignment.stacks.get(stack.prefix)
        return next((s for s in self.layout.stacks if s.prefix == prefix), None)


@dataclass(frozen=True)
class Models:
    """Every input by its reference. ``donor`` gives names, config.json and side files.

    ``heads`` are the output's head tensors in the donor's spelling: the donor's own, or those of
    another input when the donor's are tied.
    """

    by_reference: Mapping[ModelReference, Model]
    donor_reference: ModelReference
    heads: tuple[str, ...]

    @property
    def donor(self) -> Model:
        """The model that gives names, config.json and side files."""
        return self.by_reference[self.donor_reference]

    def __getitem__(self, reference: ModelReference) -> Model:
        return self.by_reference[reference]

    def find(self, reference: ModelReference, name: str) -> Source | None:
        """What the tensor that the donor calls ``name`` is in a model, None if it has none.

        A head that a model lacks because it is tied is its input embedding.
        """
        model = self[reference]
        found = model.alignment.find(name)
        tied_to = model.layout.tied_to if name in self.heads and not model.layout.heads else None
        return plain(tied_to) if found is None and tied_to else found

    def tensor(self, reference: ModelReference, name: str) -> View | None:
        """A model's tensor that the donor calls ``name``."""
        found = self.find(reference, name)
        return None if found is None else self[reference].view(found)


def open_models(
    recipe: Recipe,
    options: Options,
    chain: tuple[Plan, ...],
    failed: Container[str | None],
    problems: Problems,
) -> dict[ModelReference, Checkpoint] | None:
    """Open every model of a recipe; None after reporting all that is wrong with them.

    Results of the documents in ``chain`` are described; of those in ``failed`` nothing is said.
    """
    planned = {plan.recipe.name: plan for plan in chain}
    opened: dict[ModelReference, Checkpoint] = {}
    wanted = (*recipe.models(), *recipe.lenders())
    for reference in wanted:
        where = place_of(recipe, reference)
        if reference.path in planned:
            if result := _result(reference, planned[reference.path], where, recipe, problems):
                opened[reference] = result
            continue
        if reference.path in failed:
            continue
        checkpoint = open_checkpoint(
            reference,
            problems,
            where=where,
            line=recipe.line(where),
            cache_dir=options.cache_dir,
            needs_weights=_needs_weights(recipe, reference),
        )
        if checkpoint:
            opened[reference] = checkpoint
    return opened if len(opened) == len(wanted) else None


def _needs_weights(recipe: Recipe, reference: ModelReference) -> bool:
    """A model that lends its tokenizer or chat template may be a folder without weights."""
    tokens = recipe.tokenizer.tokens.values() if recipe.tokenizer else ()
    return reference in recipe.models() or any(t.model == reference for t in tokens)


def _result(
    reference: ModelReference, plan: Plan, where: str, recipe: Recipe, problems: Problems
) -> Checkpoint | None:
    """An earlier document's result under a reference that may ask for more than its name."""
    if reference.lora is not None:
        problems.error(
            where,
            f"LoRA adapters are not supported yet in this version: {reference}",
            "Merge the adapter into a model first (peft merge_and_unload).",
            recipe.line(where),
        )
        return None
    if reference.revision is not None:
        problems.warn(
            where,
            f"{reference.path} is a document of this file: its revision is not looked at",
            line=recipe.line(where),
        )
    made = planned_checkpoint(plan)
    config = None if made.config is None else overridden(made.config, reference)
    return replace(made, config=config)


def relate(
    recipe: Recipe,
    opened: Mapping[ModelReference, Checkpoint],
    rows: Rows,
    problems: Problems,
) -> Models:
    """Understand every checkpoint and align it with the names of the first, the donor."""
    donor = recipe.models()[0]
    opened = {r: renamed(checkpoint, r, recipe, problems) for r, checkpoint in opened.items()}
    layouts = {reference: _layout(checkpoint, rows) for reference, checkpoint in opened.items()}
    models = {
        reference: Model(opened[reference], layout, align(layouts[donor], layout))
        for reference, layout in layouts.items()
    }
    return Models(models, donor, _heads(recipe, models))


def _heads(recipe: Recipe, models: Mapping[ModelReference, Model]) -> tuple[str, ...]:
    """The output's heads: none when all inputs are tied, else those of the first that has some."""
    if recipe.tie == "force":
        return ()
    for reference in recipe.models():
        model = models[reference]
        if model.layout.heads:
            return tuple(model.alignment.back(name) for name in model.layout.heads)
    donor = models[recipe.models()[0]].layout
    return (_usual_head(donor),) if recipe.tie == "break" and donor.embeddings else ()


def _usual_head(layout: Layout) -> str:
    """What the head of a tied model is called when it is written."""
    embedding = layout.embeddings[0]
    if "word_embeddings" in embedding and "embeddings." in embedding:
        return "cls.predictions.decoder.weight"
    if embedding.endswith("embed_in.weight"):
        return "embed_out.weight"
    prefix = "language_model." if embedding.startswith("language_model.") else ""
    return f"{prefix}lm_head.weight"


def _layout(checkpoint: Checkpoint, rows: Rows) -> Layout:
    """The layout of a checkpoint, without heads that are the embedding under a second name.

    Pickles keep tied tensors as one storage with two names, and some tools write both although
    config.json says that they are tied; the second one is left out, as transformers does when it
    writes safetensors.
    """
    views = checkpoint.tensors
    layout = understand({name: view.shape for name, view in views.items()}, checkpoint.config, rows)
    stored = [views[name] for name in layout.embeddings]
    tied = says_tied(checkpoint.config or {})
    aliases = {
        name
        for name in layout.heads
        if views[name] in stored or (tied and any(alike(views[name], view) for view in stored))
    }
    if not aliases:
        return layout
    shapes = {name: view.shape for name, view in views.items() if name not in aliases}
    return understand(shapes, checkpoint.config, rows)


def planned_checkpoint(plan: Plan) -> Checkpoint:
    """The result of a plan that has not run yet, as an input: its bytes are already decided."""
    folder = plan.folder or Path()
    tensors: dict[str, View] = {}
    for shard in plan.shards:
        start = len(shard_header(plan, shard))
        for number, offset in zip(shard.jobs, shard.offsets, strict=True):
            job = plan.jobs[number]
            tensors[job.name] = StoredTensor(
                folder / shard.file, start + offset, job.dtype, job.shape
            )
    return Checkpoint(
        label=str(plan.recipe.name),
        root=folder,
        tensors={job.name: tensors[job.name] for job in plan.jobs},
        config=plan.config,
        side_files=tuple(f.name for f in plan.side_files),
        # Copied unchanged, so the donor's own can be read for those still to come.
        side_root=next((f.root for f in plan.side_files if f.content is None), None),
        texts={f.name: f.content for f in plan.side_files if f.content is not None},
    )


def place_of(recipe: Recipe, reference: ModelReference) -> str:
    """The first place of a recipe that names a model, inputs before the base."""
    for module in recipe.modules:
        for entry in module.inputs:
            if entry.model == reference:
                return entry.where
        for piece in module.slices:
            for entry in piece.inputs:
                if entry.model == reference:
                    return entry.where
    if reference == recipe.base_model:
        return "base_model"
    pieces = (piece for module in recipe.modules for piece in module.slices)
    here = (f"{piece.where}.base_model" for piece in pieces if piece.base_model == reference)
    if found := next(here, None):
        return found
    if reference == recipe.chat_template:
        return "chat_template"
    settings = recipe.tokenizer
    tokens = settings.tokens if settings else {}
    lends = (f"tokenizer.tokens.{text}" for text, t in tokens.items() if t.model == reference)
    return next(lends, settings.where if settings else "base_model")

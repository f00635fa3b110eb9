"""Targets → jobs: look up every input tensor, check that shapes fit, fill in parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mergeloom.architecture import Source, has_own_dtype, is_buffer, plain
from mergeloom.checkpoint import RowsOf
from mergeloom.errors import Problems
from mergeloom.methods import Method, MethodError
from mergeloom.planning.models import Models
from mergeloom.planning.parameters import Resolver
from mergeloom.planning.plan import Job, JobInput, Options
from mergeloom.planning.targets import Part, Target
from mergeloom.recipe import selects
from mergeloom.types import ARITHMETIC_DTYPES, ModelReference, Recipe, View

if TYPE_CHECKING:
    from mergeloom.planning.common_vocabulary import CommonVocabulary

Lacking = dict[tuple[str, str], list[str]]


@dataclass
class JobMaker:
    """Makes the jobs of one recipe and collects what does not fit, to report it by model."""

    recipe: Recipe
    method: Method
    models: Models
    options: Options
    problems: Problems
    resolver: Resolver
    vocabulary: CommonVocabulary | None = None
    used: dict[ModelReference, set[str]] = field(default_factory=dict)
    lacking: Lacking = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    repacked: dict[ModelReference, list[Source]] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    misshapen: dict[tuple[str, ModelReference], list[Target]] = field(default_factory=dict)
    failed: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def make(self, targets: Sequence[Target]) -> tuple[Job, ...]:
        """One job for each target that can be made; the rest is in the collected problems."""
        jobs = [job for target in targets if (job := self._job(target))]
        for (where, message, hint), names in self.failed.items():
            layers = f"{len(names)} tensors, the first is {names[0]}"
            self.problems.error(
                where,
                f"{self.method.name}: {message} ({layers if len(names) > 1 else names[0]})",
                hint,
                self.recipe.line(where),
            )
        return tuple(jobs)

    def _job(self, target: Target) -> Job | None:
        part = target.part
        if part is None:
            donor = self.models.donor_reference
            source = self.models.find(donor, target.name) or plain(target.name)
            return self._copy(target, donor, source, "not in a module")
        found = [
            self.models.find(entry.model, source)
            for entry, source in zip(part.inputs, target.sources, strict=True)
        ]
        lead = part.base or 0
        is_constant = self._is_constant(target, part, found)
        if is_constant or not self._selected(target.name):
            why = "a constant buffer" if is_constant else "not selected"
            return self._copy_lead(target, part, found, why)
        if self._is_apart(target, part, found, lead):
            self.kept.append(target.name)
            return self._copy_lead(target, part, found, "only in the base")
        if missing := [i for i, source in enumerate(found) if source is None]:
            if self.options.allow_crimes:
                self.unmatched.append(target.name)
                return self._copy_lead(target, part, found, "not in every model")
            for i in missing:
                entry = part.inputs[i]
                self.lacking.setdefault((entry.where, str(entry.model)), []).append(
                    target.sources[i]
                )
            return None
        sources = [source for source in found if source is not None]
        view = self.models[part.inputs[lead].model].view(sources[lead])
        if view.dtype not in ARITHMETIC_DTYPES:
            return self._copy_lead(target, part, found, "not a floating point tensor")
        job = self._merge(target, part, sources)
        if job is None and self.options.allow_crimes:
            self.unmatched.append(target.name)
            return self._copy_lead(target, part, found, "of another shape")
        return job

    def _is_constant(self, target: Target, part: Part, found: Sequence[Source | None]) -> bool:
        """Whether it is a buffer, by its name and by its shape in the inputs that have it."""
        pairs = zip(part.inputs, found, strict=True)
        return is_buffer(target.name) and all(
            is_buffer(target.name, self.models[entry.model].view(source).shape)
            for entry, source in pairs
            if source is not None
        )

    def _is_apart(
        self, target: Target, part: Part, found: Sequence[Source | None], lead: int
    ) -> bool:
        """Whether only the lead has it: a head, a projector, a whole vision tower.

        A tensor of a layer counts only if the other inputs lack the whole stack: a layer that
        lacks one tensor is another kind of layer.
        """
        if any(source for i, source in enumerate(found) if i != lead) or all(found):
            return False
        stack = target.place.stack
        without = [entry for entry, source in zip(part.inputs, found, strict=True) if not source]
        return target.place.role != "layer" or (
            stack is not None and not any(self.models[e.model].stack_like(stack) for e in without)
        )

    def _selected(self, name: str) -> bool:
        recipe = self.recipe
        included = not recipe.include or selects(recipe.include, name)
        return included and not (recipe.exclude and selects(recipe.exclude, name))

    def _copy_lead(
        self, target: Target, part: Part, found: Sequence[Source | None], why: str
    ) -> Job | None:
        """A copy from the base, else from the donor where it is meant, else the first input."""
        donor = self.models.donor_reference
        # A base that is not a source of the slice has no layer for it, but it has the ends.
        from_donor = not part.is_slice or (
            self.recipe.base_model is not None
            and part.origin is None
            and target.place.role != "layer"
        )
        if part.base is None and from_donor and donor.path:
            source = self.models.find(donor, target.name)
            if source is not None:
                return self._copy(target, donor, source, why)
        lead = part.origin or 0
        order = [lead, *(i for i in range(len(found)) if i != lead)]
        for i in order:
            if (source := found[i]) is not None:
                return self._copy(target, part.inputs[i].model, source, why)
        # Slices of other models than the donor, which alone has this tensor.
        source = self.models.find(donor, target.name)
        return self._copy(target, donor, source, why) if source is not None else None

    def _copy(self, target: Target, reference: ModelReference, source: Source, why: str) -> Job:
        view = self._view(reference, source, target)
        self._use(reference, source)
        for other in self.models.by_reference:
            # Theirs was left out on purpose (exclude, modules, a buffer), not overlooked.
            if (theirs := self.models.find(other, target.name)) is not None:
                self._use(other, theirs)
        entry = JobInput(self.models[reference].checkpoint.label, source.text, view)
        dtype = view.dtype if is_buffer(target.name, view.shape) else self._dtype(target, view)
        return Job(target.name, dtype, view.shape, None, (entry,), position=target.position,
                   why=why)  # fmt: skip

    def _use(self, reference: ModelReference, source: Source) -> None:
        """Note that a model's tensors are read."""
        self.used.setdefault(reference, set()).update(source.names)
        if not source.is_plain:
            self.repacked.setdefault(reference, []).append(source)

    def _dtype(self, target: Target, view: View) -> str:
        """The output dtype: ``out_dtype``, else ``dtype``, else what the base stores."""
        wanted = self.recipe.out_dtype or self.recipe.dtype
        kept = has_own_dtype(target.name) and not self.options.cast_all
        if not wanted or kept or view.dtype not in ARITHMETIC_DTYPES:
            return view.saved_dtype
        return wanted

    def _merge(self, target: Target, part: Part, sources: Sequence[Source]) -> Job | None:
        inputs = []
        for i, (entry, source) in enumerate(zip(part.inputs, sources, strict=True)):
            self._use(entry.model, source)
            inputs.append(self._input(target, part, i, source))
        if part.base is not None:
            inputs.insert(0, inputs.pop(part.base))
        fitted = self._fit(target, part, inputs)
        if fitted is None:
            return None
        shape = fitted[0].view.shape
        job = Job(
            name=target.name,
            dtype=self._dtype(target, fitted[0].view),
            shape=shape,
            method=self.method.name,
            inputs=fitted,
            has_base=part.base is not None,
            parameters=self.resolver.shared(part, target.name, target.position),
            position=target.position,
            exact=self.vocabulary.exact(target.name, shape) if self.vocabulary else (),
        )
        try:
            if not self.resolver.missing:
                job.formula()
        except MethodError as error:
            # A parameter that is written, and has no entry for this tensor.
            given = {name for _, settings in part.levels for name in settings}
            absent = [n for n, value in job.parameters.items() if value is None and n in given]
            hint = "".join(
                f"Add a last entry without a filter to {name}: {{value: ...}}."
                for name in absent[:1]
            )
            self.failed.setdefault((part.where, str(error), hint), []).append(target.name)
        return job

    def _input(self, target: Target, part: Part, number: int, source: Source) -> JobInput:
        entry = part.inputs[number]
        model = self.models[entry.model]
        # What the recipe's filters match: the model's own name, but the donor's for what the model
        # packs in another way, and the head's for the embedding of a tied model.
        is_tied_head = target.place.role == "head" and source.names[0] == model.layout.tied_to
        own_name = source.names[0] if source.is_plain else target.sources[number]
        parameters = self.resolver.per_model(
            part,
            entry,
            target.name if is_tied_head else own_name,
            target.position,
            is_base=number == part.base,
        )
        view = self._view(entry.model, source, target)
        return JobInput(model.checkpoint.label, source.text, view, parameters)

    def _view(self, reference: ModelReference, source: Source, target: Target) -> View:
        """An input's tensor; one with a row for each token in the output's vocabulary."""
        view = self.models[reference].view(source)
        if self.vocabulary is None or target.place.role == "layer":
            return view
        return self.vocabulary.aligned(reference, target.name, view)

    def _fit(
        self, target: Target, part: Part, inputs: Sequence[JobInput]
    ) -> tuple[JobInput, ...] | None:
        """The inputs if their shapes agree, cut to the fewest rows where that was asked for."""
        shapes = {i.view.shape for i in inputs}
        if len(shapes) == 1:
            return tuple(inputs)
        is_vocabulary = target.place.role in ("embedding", "head")
        if (
            is_vocabulary
            and self.options.unsafe_truncate_embeddings
            and len({s[1:] for s in shapes}) == 1
        ):
            rows = min(s[0] for s in shapes)
            self.truncated[target.name] = rows
            return tuple(
                i if i.view.shape[0] == rows else replace(i, view=RowsOf(i.view, 0, rows))
                for i in inputs
            )
        if self.options.allow_crimes:
            return None  # copied, and told
        expected = inputs[0].view.shape
        references = list(part.inputs)
        if part.base is not None:
            references.insert(0, references.pop(part.base))
        for entry, given in zip(references, inputs, strict=True):
            if given.view.shape != expected:
                self.misshapen.setdefault((entry.where, entry.model), []).append(target)
        return None


def unused_tensors(
    models: Models, used: Mapping[ModelReference, set[str]], contributing: Sequence[ModelReference]
) -> dict[str, tuple[str, ...]]:
    """Input label → tensors of it that nothing reads, for inputs merged as whole models."""
    found = {}
    for reference in contributing:
        model = models[reference]
        left = [n for n in model.layout.shapes if n not in used.get(reference, ())]
        if left:
            found[model.checkpoint.label] = tuple(left)
    return found

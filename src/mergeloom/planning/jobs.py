"""Targets → jobs: look up every input tensor, check that shapes fit, fill in parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mergeloom.architecture import is_buffer
from mergeloom.checkpoint import RowsOf
from mergeloom.errors import Problems
from mergeloom.methods import Method, MethodError
from mergeloom.planning.models import Models
from mergeloom.planning.parameters import Resolver
from mergeloom.planning.plan import Job, JobInput, Options
from mergeloom.planning.targets import Part, Target
from mergeloom.recipe import selects
from mergeloom.types import ARITHMETIC_DTYPES, Input, ModelReference, Recipe, View

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
    used: dict[ModelReference, set[str]] = field(default_factory=dict)
    lacking: Lacking = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)
    misshapen: dict[tuple[str, ModelReference], list[Target]] = field(default_factory=dict)
    failed: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def make(self, targets: Sequence[Target]) -> tuple[Job, ...]:
        """One job for each target that can be made; the rest is in the collected problems."""
        jobs = [job for target in targets if (job := self._job(target))]
        for (where, message), names in self.failed.items():
            layers = f"{len(names)} tensors, the first is {names[0]}"
            self.problems.error(
                where,
                f"{self.method.name}: {message} ({layers if len(names) > 1 else names[0]})",
                line=self.recipe.line(where),
            )
        return tuple(jobs)

    def _job(self, target: Target) -> Job | None:
        part = target.part
        if part is None:
            return self._copy(target, self.models.donor_reference, target.name, "not in a module")
        found = [
            self.models.find(entry.model, source)
            for entry, source in zip(part.inputs, target.sources, strict=True)
        ]
        lead = part.base or 0
        if not self._selected(target.name) or is_buffer(target.name):
            why = "a constant buffer" if is_buffer(target.name) else "not selected"
            return self._copy_lead(target, part, found, why)
        alone = all(name is None for i, name in enumerate(found) if i != lead)
        if alone and len(found) > 1 and target.place.role != "layer":
            # A head or pooler that only the base has; a layer without it would be another layer.
            self.kept.append(target.name)
            return self._copy_lead(target, part, found, "only in the base")
        if missing := [i for i, name in enumerate(found) if name is None]:
            for i in missing:
                entry = part.inputs[i]
                self.lacking.setdefault((entry.where, str(entry.model)), []).append(
                    target.sources[i]
                )
            return None
        names = [name for name in found if name is not None]
        view = self.models[part.inputs[lead].model].view(names[lead])
        if view.dtype not in ARITHMETIC_DTYPES:
            return self._copy_lead(target, part, found, "not a floating point tensor")
        return self._merge(target, part, names)

    def _selected(self, name: str) -> bool:
        recipe = self.recipe
        included = not recipe.include or selects(recipe.include, name)
        return included and not (recipe.exclude and selects(recipe.exclude, name))

    def _copy_lead(
        self, target: Target, part: Part, found: Sequence[str | None], why: str
    ) -> Job | None:
        """A copy from the base, else from the donor where it is meant, else the first input."""
        donor = self.models.donor_reference
        # A base that is no source of the slice has no layer that belongs here, but ends it has.
        spoken = not part.is_slice or (
            self.recipe.base_model is not None
            and part.origin is None
            and target.place.role != "layer"
        )
        if part.base is None and spoken and donor.path:
            name = self.models.find(donor, target.name)
            if name is not None:
                return self._copy(target, donor, name, why)
        lead = part.origin or 0
        order = [lead, *(i for i in range(len(found)) if i != lead)]
        for i in order:
            if (name := found[i]) is not None:
                return self._copy(target, part.inputs[i].model, name, why)
        # Slices of other models than the donor, which alone has this tensor.
        name = self.models.find(donor, target.name)
        return self._copy(target, donor, name, why) if name is not None else None

    def _copy(self, target: Target, reference: ModelReference, name: str, why: str) -> Job:
        view = self.models[reference].view(name)
        self.used.setdefault(reference, set()).add(name)
        for other in self.models.by_reference:
            # Theirs was left out on purpose (exclude, modules, a buffer), not overlooked.
            if (theirs := self.models.find(other, target.name)) is not None:
                self.used.setdefault(other, set()).add(theirs)
        entry = JobInput(self.models[reference].checkpoint.label, name, view)
        dtype = view.dtype if is_buffer(target.name) else self._dtype(view)
        return Job(target.name, dtype, view.shape, None, (entry,), position=target.position,
                   why=why)  # fmt: skip

    def _dtype(self, view: View) -> str:
        """The output dtype: ``out_dtype``, else ``dtype``, else what the base stores."""
        wanted = self.recipe.out_dtype or self.recipe.dtype
        return wanted if wanted and view.dtype in ARITHMETIC_DTYPES else view.saved_dtype

    def _merge(self, target: Target, part: Part, names: Sequence[str]) -> Job | None:
        inputs = []
        for i, (entry, name) in enumerate(zip(part.inputs, names, strict=True)):
            self.used.setdefault(entry.model, set()).add(name)
            inputs.append(self._input(target, part, entry, name, is_base=i == part.base))
        if part.base is not None:
            inputs.insert(0, inputs.pop(part.base))
        fitted = self._fit(target, part, inputs)
        if fitted is None:
            return None
        job = Job(
            name=target.name,
            dtype=self._dtype(fitted[0].view),
            shape=fitted[0].view.shape,
            method=self.method.name,
            inputs=fitted,
            has_base=part.base is not None,
            parameters=self.resolver.shared(part, target.name, target.position),
            position=target.position,
        )
        try:
            if not self.resolver.missing:
                job.formula()
        except MethodError as error:
            self.failed.setdefault((part.where, str(error)), []).append(target.name)
        return job

    def _input(
        self, target: Target, part: Part, entry: Input, name: str, *, is_base: bool
    ) -> JobInput:
        model = self.models[entry.model]
        # The head of a tied model is its embedding, but a recipe speaks of it as the head.
        is_tied_head = target.place.role == "head" and name in model.layout.embeddings
        spoken = target.name if is_tied_head else name
        parameters = self.resolver.per_model(part, entry, spoken, target.position, is_base=is_base)
        return JobInput(model.checkpoint.label, name, model.view(name), parameters)

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

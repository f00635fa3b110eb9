"""Whether inputs fit a method and each other, in the words of the user's mistake."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from mergeloom.errors import Problems, first_few
from mergeloom.methods import Method
from mergeloom.planning.jobs import JobMaker
from mergeloom.planning.models import Model, Models, place_of
from mergeloom.planning.parameters import Resolver
from mergeloom.planning.plan import Job, Options
from mergeloom.planning.targets import Part, Target
from mergeloom.planning.vocabularies import vocabulary_rows
from mergeloom.recipe import matches, selects
from mergeloom.recipe.words import nearest_match
from mergeloom.types import ModelReference, Recipe

SIZE_KEYS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "num_attention_heads",
             "num_key_value_heads", "head_dim", "num_experts", "num_local_experts")  # fmt: skip
# Written once in the output's config.json, though every input was trained with its own.
SHARED_KEYS = ("rope_theta", "rope_scaling", "rms_norm_eps", "layer_norm_eps", "hidden_act",
               "final_logit_softcapping", "attn_logit_softcapping")  # fmt: skip
MANY = "For three or more models use linear or task_arithmetic."
NO_TOKENIZERS = "Rows are matched by tokens: put the tokenizers into the models' folders."
OTHER_SIZES = "Models of different sizes cannot be merged."
TRUNCATE = "--unsafe-truncate-embeddings cuts all to the smallest."


def check_count(recipe: Recipe, method: Method, part: Part, problems: Problems) -> None:
    """The number of inputs and the presence of the base."""
    where, line = part.where, recipe.line(part.where)
    listed = ", ".join(str(entry.model) for entry in part.inputs)
    base = _base_of(recipe, part)
    if method.base == "required" and part.base is None:
        if base is None:
            problems.error("merge_method", f"{method.name} needs a base_model",
                           "Add base_model: <the model the others were fine-tuned from>.",
                           recipe.line("merge_method"))  # fmt: skip
        else:
            problems.error(where, f"{method.name} needs the base {base} among the "
                           f"sources of every slice; found {listed}",
                           "Add it as a source.", line)  # fmt: skip
        return
    if method.name == "slerp" and any(settings.get("t") for _, settings in part.levels):
        _check_slerp(recipe, part, problems)
        return
    low, high = method.models
    count = len(part.others)
    if low <= count <= (high if high is not None else count):
        return
    wanted = f"exactly {low}" if low == high else f"{low} to {high}" if high else f"at least {low}"
    wanted += " model" if low == high == 1 else " models"
    others = ", ".join(str(entry.model) for entry in part.others)
    found = f"found {count}{': ' if others else ''}{others}"
    if part.base is not None:
        wanted += " besides the base"
        found += f"; the base is {part.inputs[part.base].model}"
    hint = ""
    if method.name in ("slerp", "nuslerp") and count > 2:
        hint = MANY
    elif method.name == "nuslerp" and part.base is not None and len(part.inputs) == 2:
        hint = "Without base_model the two models themselves are blended."
    elif method.name == "passthrough":
        hint = "To stack layers of several models, write slices."
    problems.error(where, f"{method.name} takes {wanted}, {found}", hint, line)


def _base_of(recipe: Recipe, part: Part) -> ModelReference | None:
    """The base that the recipe names for these inputs: the slice's own, or everybody's."""
    pieces = (piece for module in recipe.modules for piece in module.slices)
    own = next((piece.base_model for piece in pieces if piece.where == part.where), None)
    return own or recipe.base_model


def _check_slerp(recipe: Recipe, part: Part, problems: Problems) -> None:
    """slerp with t walks from the base to exactly one other model."""
    listed = [str(entry.model) for entry in part.inputs if entry.where != "base_model"]
    if part.base is not None and len(part.others) == 1:
        return
    line = recipe.line(part.where)
    several = f"slerp takes two models, found {len(listed)}: {', '.join(listed)}"
    example = f"base_model: {listed[0]}"
    if len(listed) != 2:
        problems.error(part.where, several, MANY if len(listed) > 2 else "", line)
    elif base := _base_of(recipe, part):
        found = f"the base {base} is neither of them: {', '.join(listed)}"
        message = f"slerp with t walks between two models, from the base to the other, and {found}"
        problems.error(part.where, message, f"Name one of the two, as in {example}.", line)
    else:
        message = f"slerp with t walks from the base_model to the other of {' and '.join(listed)}"
        problems.error(part.where, message, f"Say where it begins, as in {example}.", line)


def check_layers(recipe: Recipe, models: Models, parts: Sequence[Part], problems: Problems) -> None:
    """Models merged whole must have equally many layers."""
    donor = models.donor.layout
    if donor.main is None:
        return
    for part in parts:
        if part.is_slice:
            continue
        for entry in part.inputs:
            theirs = models[entry.model].stack_like(donor.main)
            if theirs and theirs.length != donor.main.length:
                label = models[entry.model].checkpoint.label
                problems.error(
                    entry.where,
                    f"{models.donor.checkpoint.label} has {donor.main.length} layers, "
                    f"{label} has {theirs.length}",
                    "Use slices with layer_range to say which layers meet.",
                    recipe.line(entry.where),
                )


def warn_settings(models: Models, problems: Problems) -> None:
    """Config values that the output can hold only once but that the inputs disagree on."""
    donor = models.donor.checkpoint
    with_config = [m.checkpoint for m in models.by_reference.values() if m.checkpoint.config]
    if donor.config is None and (donor.side_files or with_config):
        first = f"To take that of {with_config[0].label}, list it first." if with_config else ""
        problems.warn(donor.label, "has no config.json, so the output will have none", first)
    for model in models.by_reference.values():
        theirs, ours = model.checkpoint.config, donor.config
        if not theirs or not ours:
            continue
        for key in SHARED_KEYS:
            if key in theirs and key in ours and not _same(theirs[key], ours[key]):
                problems.warn(
                    model.checkpoint.label,
                    f"was trained with {key} {theirs[key]}, the output gets "
                    f"{donor.label}'s {ours[key]}",
                )


def _same(a: object, b: object) -> bool:
    """Whether two settings are equal, but for a float that went through 32 bits (GGUF's do)."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b


def warn_unread(jobs: Sequence[Job], problems: Problems) -> None:
    """Slerp reads t or weight; when both are given, t wins."""
    for job in jobs:
        weighed = any(i.parameters.get("weight") is not None for i in job.inputs)
        if job.method == "slerp" and weighed and job.parameters.get("t") is not None:
            problems.warn("parameters.t", "slerp goes by t, so weight has no effect")
            return


def report_lacking(maker: JobMaker, whole: Sequence[ModelReference]) -> None:
    """Tensors that an input should have and does not, or models that fit nowhere at all."""
    donor = maker.models.donor.checkpoint.label
    unrelated = [r for r in whole if maker.models[r].layout.shapes and not maker.used.get(r)]
    for reference in unrelated:
        where = place_of(maker.recipe, reference)
        first = next(iter(maker.models[reference].layout.shapes))
        maker.problems.error(
            where,
            f"no tensor of {maker.models[reference].checkpoint.label} ({first}, ...) is in {donor}",
            "Only models of the same kind can be merged.",
            maker.recipe.line(where),
        )
    for (where, label), names in maker.lacking.items():
        if label in map(str, unrelated):
            continue
        shown = first_few(names)
        maker.problems.error(
            where,
            f"{label} lacks {len(names)} tensors that the other sources have: {shown}"
            if label == donor
            else f"{label} lacks {len(names)} of the {len(maker.models.donor.layout.shapes)} "
            f"tensors that {donor} has: {shown}",
            _hint_for_lacking(maker, label, names),
            maker.recipe.line(where),
        )


def _hint_for_lacking(maker: JobMaker, label: str, names: Sequence[str]) -> str:
    """What to do about tensors that a model lacks: a whole part of it, or some here and there."""
    models = maker.models
    found = next((m for r, m in models.by_reference.items() if str(r) == label), models.donor)
    stacks = {stack for name in names if (stack := models.donor.layout.place(name).stack)}
    if stacks and not any(found.stack_like(stack) for stack in stacks):
        return (
            "It has no such part: say which models go into which part, as in "
            "modules: {text_decoder: {models: ...}, vision_tower: {models: ...}}."
        )
    return (
        "Leave them out with exclude: to take the base's, or check that it is the same kind of "
        "model."
    )


def report_shapes(maker: JobMaker) -> None:
    """Shape mismatches, one message for each model: its size, or its vocabulary."""
    for (where, reference), targets in maker.misshapen.items():
        model, donor = maker.models[reference], maker.models.donor
        line = maker.recipe.line(where)
        if all(t.place.role in ("embedding", "head") for t in targets):
            if not any(problem.where == where for problem in maker.problems.errors):
                message = _vocabulary_message(donor, model, targets[0])
                maker.problems.error(where, message, f"{NO_TOKENIZERS} {TRUNCATE}", line)
            continue
        first = targets[0]
        ours = donor.layout.shapes.get(first.sources[0], ())
        source = maker.models.find(reference, first.sources[0])
        theirs = model.view(source).shape if source else ()
        example = f"{first.name}: {list(theirs)} vs {list(ours)}"
        message = _shapes_message(donor, model, len(targets), example)
        maker.problems.error(where, message, OTHER_SIZES, line)


def report_sliced_shapes(maker: JobMaker, jobs: Sequence[Job], targets: Sequence[Target]) -> None:
    """Slices of other models than the donor must have the sizes that its config.json states."""
    donor = maker.models.donor
    by_name = {target.name: target for target in targets}
    wrong: dict[tuple[str, ModelReference], list[tuple[Target, Job, tuple[int, ...]]]] = {}
    for job in jobs:
        target = by_name[job.name]
        if target.part is None or not target.part.is_slice or job.name in maker.truncated:
            continue
        if maker.vocabulary and maker.vocabulary.covers(job.name):
            continue
        place, shapes = target.place, donor.layout.shapes
        names = [job.name]
        if place.stack and place.role == "layer":  # any layer: some models alternate two sizes
            names = [place.stack.tensor(i, place.suffix) for i in range(place.stack.length)]
        expected = [shapes[name] for name in names if name in shapes]
        if expected and job.shape not in expected:
            lead = target.part.inputs[target.part.base or 0]
            wrong.setdefault((lead.where, lead.model), []).append((target, job, expected[0]))
    for (where, reference), found in wrong.items():
        model, (target, job, ours) = maker.models[reference], found[0]
        line = maker.recipe.line(where)
        if all(t.place.role in ("embedding", "head") for t, _, _ in found):
            maker.problems.error(
                where, _vocabulary_message(donor, model, target), NO_TOKENIZERS, line
            )
            continue
        example = f"{job.inputs[0].tensor}: {list(job.shape)} vs {list(ours)}"
        message = _shapes_message(donor, model, len(found), example)
        maker.problems.error(where, message, OTHER_SIZES, line)


def size_differences(donor: Model, other: Model) -> str:
    """The sizes that two configs disagree on."""
    ours, theirs = donor.checkpoint.config or {}, other.checkpoint.config or {}
    return ", ".join(
        f"{key} {theirs[key]} vs {ours[key]}"
        for key in SIZE_KEYS
        if key in ours and key in theirs and ours[key] != theirs[key]
    )


def _shapes_message(donor: Model, other: Model, count: int, example: str) -> str:
    message = (
        f"{count} tensors of {other.checkpoint.label} have other shapes than "
        f"{donor.checkpoint.label}'s ({example})"
    )
    reasons = size_differences(donor, other)
    return f"{message}; {reasons}" if reasons else message


def _vocabulary_message(donor: Model, other: Model, target: Target) -> str:
    ours, theirs = vocabulary_rows(donor), vocabulary_rows(other)
    return (
        f"{donor.checkpoint.label} has {ours} vocabulary rows, {other.checkpoint.label} {theirs} "
        f"({target.name})"
    )


def report_filters(
    recipe: Recipe, resolver: Resolver, options: Options, problems: Problems
) -> None:
    """A filter that matches nothing is a misspelt filter; one that is only shadowed is told."""
    for use in resolver.filters():
        if use.matched:
            continue
        names = resolver.asked[(use.where, use.filter)]
        if any(matches(use.filter, name) for name in resolver.names):
            why = "what it matches is in another slice, or has its value from a level before this"
            problems.warn(use.where, f"filter {use.filter!r} has no effect here: {why}", "",
                          recipe.line(use.where))  # fmt: skip
            continue
        report = problems.warn if options.lenient else problems.error
        message = f"filter {use.filter!r} matched 0 of {use.asked} tensors"
        near = _meant(use.filter, names)
        message += f"; did you mean {near}?" if near else ""
        report(use.where, message, "", recipe.line(use.where))


def _meant(pattern: str, names: Iterable[str]) -> str | None:
    """The filter that was probably meant by one that matches none of the names."""
    text = pattern.removeprefix("glob:")
    near: str | None = text
    if not any(text in name for name in names):
        words = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
        near = nearest_match(text, words)
        if near and near in text and "*" not in text:
            return None  # all of it is right but the number of the layer
    return near if text == pattern or not near else f"glob:*{near}*"


def report_patterns(
    recipe: Recipe,
    jobs: Sequence[Job],
    names: Sequence[str],
    options: Options,
    problems: Problems,
) -> None:
    """An entry of include or exclude that names no tensor is a misspelt one."""
    report = problems.warn if options.lenient else problems.error
    words = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
    for key, patterns in (("include", recipe.include), ("exclude", recipe.exclude)):
        for number, pattern in enumerate(patterns):
            if any(selects((pattern,), name) for name in names):
                continue
            part_of_a_name = any(pattern in name for name in names)
            near = [pattern] if part_of_a_name else get_close_matches(pattern, words, n=1)
            is_plain = not pattern.startswith("re:")
            guess = f"; did you mean '*{near[0]}*'?" if near and is_plain else ""
            where = f"{key}[{number}]"
            message = f"{pattern!r} matched 0 of {len(names)} tensors{guess}"
            report(where, message, "", recipe.line(where))
        if patterns and jobs and not any(job.method for job in jobs):
            report(key, "leaves no tensor to merge", "", recipe.line(key))
            break


def warn_left_out(maker: JobMaker, unused: Mapping[str, Sequence[str]]) -> None:
    """Say which tensors only the donor has, and which of the others' nothing uses."""
    donor = maker.models.donor.checkpoint.label
    for label, names in (*unused.items(), (donor, maker.kept)):
        if not names:
            continue
        shown = first_few(names)
        count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        what = "in no other model and copied unchanged" if names is maker.kept else "not used"
        maker.problems.warn(label, f"{count} {what}: {shown}")
    if maker.unmatched:
        shown = first_few(maker.unmatched)
        maker.problems.warn("--allow-crimes", f"{len(maker.unmatched)} tensors do not match and "
                            f"are copied from the base: {shown}")  # fmt: skip
    for reference, model in maker.models.by_reference.items():
        for ours, theirs in model.alignment.prefixes:
            maker.problems.warn(
                model.checkpoint.label,
                f"its names have {theirs or 'no'} prefix where {donor} has {ours or 'none'}; "
                "they were matched",
            )
        if found := maker.repacked.get(reference):
            maker.problems.warn(
                model.checkpoint.label,
                f"{len(found)} tensors are packed in another way than in {donor} and are read in "
                f"its way, as {found[0].text}",
            )

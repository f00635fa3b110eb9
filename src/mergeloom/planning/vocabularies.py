"""Which vocabulary the output gets: from the recipe's tokenizer settings, or because all agree."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mergeloom.errors import MergeloomError, Problems, listing
from mergeloom.planning.models import Model, Models, place_of
from mergeloom.planning.plan import Options
from mergeloom.types import ModelReference, Recipe, TokenSetting
from mergeloom.vocabulary.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:  # most merges need neither
    from mergeloom.planning.common_vocabulary import CommonVocabulary
    from mergeloom.vocabulary.rows import Chosen
    from mergeloom.vocabulary.union import OutputVocabulary

CHOICES = (
    "Say which tokens the result has: tokenizer_source: base (the base's), union (all of them) or "
    "the name of a model."
)
SHOWN = 5


@dataclass(frozen=True)
class Decided:
    """What was decided about the output's vocabulary.

    Args:
        common: how rows come into the output's vocabulary; None when they all fit as they are.
        output: the output's tokens when a tokenizer setting was given.
        tokenizers: the tokenizers that were read, by model.
        source: the model whose tokenizer files the output gets.
        among: the tokenizers that ``output`` was made from, in its order.
    """

    source: ModelReference
    common: CommonVocabulary | None = None
    output: OutputVocabulary | None = None
    tokenizers: Mapping[ModelReference, Tokenizer] = field(default_factory=dict)
    among: tuple[Tokenizer, ...] = ()


def decide(recipe: Recipe, models: Models, options: Options, problems: Problems) -> Decided:
    """Decide the output's vocabulary and every input's row map; mistakes go to ``problems``."""
    plain = Decided(models.donor_reference)
    if recipe.tokenizer is None:
        if options.unsafe_truncate_embeddings or not vocabulary_rows(models.donor):
            return plain
        return _as_they_are(recipe, models, problems)
    holders = (*recipe.models(), *recipe.lenders())
    if _nothing_to_do(recipe, models, holders):
        return plain
    tokenizers = _read(recipe, models, holders, problems, required=True)
    if tokenizers is None:
        return plain
    return _Setting(recipe, models, holders, tokenizers, problems).decide()


def _nothing_to_do(recipe: Recipe, models: Models, holders: Sequence[ModelReference]) -> bool:
    """Whether a setting changes nothing: one and the same tokenizer, as many rows in each model.

    Most recipes name a tokenizer source though all their models are of one family; their
    tokenizers are then not even parsed.
    """
    settings = recipe.tokenizer
    if settings is None or settings.tokens or settings.pad_to_multiple_of:
        return False
    read = [read_tokenizer(models[holder].checkpoint) for holder in holders]
    rows = {vocabulary_rows(models[holder]) for holder in holders}
    same = len({t.digest if t else None for t in read}) == len(rows) == 1
    return same and read[0] is not None and not read[0].may_exceed(rows.pop())


def vocabulary_rows(model: Model) -> int:
    """The rows of a model's input embedding, else of its head; 0 for a model without tokens."""
    names = model.layout.embeddings or model.layout.heads
    return model.layout.shapes[names[0]][0] if names else 0


def _read(
    recipe: Recipe,
    models: Models,
    holders: Sequence[ModelReference],
    problems: Problems,
    *,
    required: bool,
) -> dict[ModelReference, Tokenizer] | None:
    """Every holder's tokenizer; None after reporting those that cannot be read."""
    found: dict[ModelReference, Tokenizer] = {}
    complete = True
    for reference in holders:
        where = place_of(recipe, reference)
        tokenizer = read_tokenizer(models[reference].checkpoint)
        if tokenizer is not None:
            found[reference] = tokenizer
        elif required and _needs_tokenizer(recipe, reference):
            problems.error(
                where,
                f"{models[reference].checkpoint.label} has no tokenizer files, so its rows cannot "
                "be matched with tokens",
                "Put its tokenizer into its folder, or remove the tokenizer setting.",
                recipe.line(where),
            )
            complete = False
    if len({tokenizer.digest for tokenizer in found.values()}) > 1 or required:
        complete = _all_parse(found.values(), problems) and complete
    return found if complete else None


def _all_parse(tokenizers: Iterable[Tokenizer], problems: Problems) -> bool:
    """Whether every tokenizer's tokens can be read; tells the mistakes of the others."""
    complete = True
    for tokenizer in tokenizers:
        try:
            tokenizer.ids  # noqa: B018 - parsed on first use
        except MergeloomError as error:
            problems.errors += error.problems
            complete = False
    return complete


def _needs_tokenizer(recipe: Recipe, reference: ModelReference) -> bool:
    """A model that only lends its chat template need not have one."""
    return reference in recipe.models() or (
        recipe.tokenizer is not None
        and (
            recipe.tokenizer.source == reference
            or any(t.model == reference for t in recipe.tokenizer.tokens.values())
        )
    )


# --- without a setting -------------------------------------------------------------------------


def _as_they_are(recipe: Recipe, models: Models, problems: Problems) -> Decided:
    """Rows are merged by index when equal ids mean equal tokens, and refused otherwise."""
    donor = models.donor
    decided = Decided(models.donor_reference)
    read = _read(recipe, models, recipe.models(), problems, required=False)
    if read is None or models.donor_reference not in read:
        return decided
    ours = read[models.donor_reference]
    for reference, theirs in read.items():
        if theirs.digest == ours.digest:
            continue
        label = models[reference].checkpoint.label
        where = place_of(recipe, reference)
        if conflicts := ours.conflicts(theirs):
            problems.error(
                where,
                f"{conflicts} token ids of {label} mean other tokens than in "
                f"{donor.checkpoint.label} ({_example(ours, theirs)}); {ours.shared(theirs)} of "
                f"{len(ours.ids)} and {len(theirs.ids)} tokens are shared",
                CHOICES,
                recipe.line(where),
            )
        elif extra := [t for t in theirs.ids if t not in ours.ids]:
            problems.warn(
                label,
                f"{_count(extra)} that {donor.checkpoint.label} has not, and the result will not "
                f"have: {some(extra)}. tokenizer_source: union keeps them",
            )
    holders = tuple(read)
    counts = {reference: vocabulary_rows(models[reference]) for reference in recipe.models()}
    if problems.errors or len(holders) < len(counts) or len(set(counts.values())) == 1:
        return Decided(models.donor_reference, tokenizers=read)
    from mergeloom.planning.common_vocabulary import CommonVocabulary

    common = CommonVocabulary(
        models=models,
        holders=holders,
        merged=len(holders),
        tokenizers=tuple(read.values()),
        ids={t: i for t, i in ours.ids.items() if i < counts[models.donor_reference]},
        rows=counts[models.donor_reference],
        base=_base(recipe, holders),
    )
    return Decided(models.donor_reference, common, None, read)


def _example(ours: Tokenizer, theirs: Tokenizer) -> str:
    """The first id with two meanings."""
    texts = {number: token for token, number in theirs.ids.items()}
    return next(
        f"id {number} is {texts[number]!r}, not {token!r}"
        for token, number in ours.ids.items()
        if texts.get(number, token) != token
    )


def _base(recipe: Recipe, holders: Sequence[ModelReference]) -> int | None:
    return holders.index(recipe.base_model) if recipe.base_model in holders else None


def _count(tokens: Sequence[str]) -> str:
    return "has 1 token" if len(tokens) == 1 else f"has {len(tokens)} tokens"


def some(tokens: Sequence[str]) -> str:
    """The first of them, quoted, and how many more there are."""
    return listing(map(repr, tokens), SHOWN)


# --- with a tokenizer setting ------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """One reading of the recipe's ``tokenizer``."""

    recipe: Recipe
    models: Models
    holders: tuple[ModelReference, ...]
    tokenizers: Mapping[ModelReference, Tokenizer]
    problems: Problems

    def decide(self) -> Decided:
        from mergeloom.planning.common_vocabulary import CommonVocabulary
        from mergeloom.vocabulary.union import output_vocabulary

        settings = self.recipe.tokenizer
        if settings is None:
            raise ValueError("there is no tokenizer setting")
        donor = self.models.donor_reference
        union = settings.source == "union"
        source = settings.source if isinstance(settings.source, ModelReference) else donor
        plain = Decided(source, tokenizers=self.tokenizers)
        chosen = self._chosen(settings.tokens)
        holders = tuple(h for h in self.holders if h in self.tokenizers)
        rows = [vocabulary_rows(self.models[h]) for h in holders]
        if not rows[0]:
            self._error(settings.where, f"{donor} has no vocabulary tensors that could follow it")
        if self.problems.errors:
            return plain
        merged = len(self.recipe.models())
        among = holders[:merged] if union or source in holders[:merged] else holders
        used = tuple(self.tokenizers[h] for h in among)
        try:
            output = output_vocabulary(
                used,
                # A tokenizer that only lends its tokens needs no rows for them.
                [n or 1 << 62 for n in rows[: len(among)]],
                "union" if union else among.index(source),
                tokens={text: {"special": t.special} for text, t in settings.tokens.items()},
                union_mode=settings.union_mode or "merge",
                where=settings.where,
            )
        except MergeloomError as error:
            self.problems.errors += error.problems
            return plain
        for warning in output.warnings:
            self.problems.warn(settings.where, warning, line=self.recipe.line(settings.where))
        common = CommonVocabulary(
            models=self.models,
            holders=holders,
            merged=merged,
            tokenizers=tuple(self.tokenizers[h] for h in holders),
            ids=output.ids,
            rows=self._rows(output, holders, rows),
            donor=holders.index(source),
            base=_base(self.recipe, holders),
            chosen=chosen,
            missing=settings.missing or "peers",
        )
        return Decided(source, common, output, self.tokenizers, used)

    def _rows(
        self, output: OutputVocabulary, holders: Sequence[ModelReference], rows: Sequence[int]
    ) -> int:
        """Never fewer than the donor's; padded as asked, else as the donor is padded."""
        settings = self.recipe.tokenizer
        wanted = settings.pad_to_multiple_of if settings else None
        donor = rows[output.source]
        needed = max(donor, max(output.ids.values(), default=0) + 1)
        if wanted:
            return -(-needed // wanted) * wanted
        ids = self.tokenizers[holders[output.source]].ids
        padded = donor > max(ids.values(), default=0) + 1
        if needed == donor or not padded:
            return needed
        multiple = min(128, donor & -donor)  # the largest power of two in the donor's rows
        return -(-needed // multiple) * multiple

    def _chosen(self, tokens: Mapping[str, TokenSetting]) -> dict[str, Chosen]:
        from mergeloom.vocabulary.rows import Chosen

        found = {}
        for text, setting in tokens.items():
            where = f"tokenizer.tokens.{text}"
            if setting.kind in ("model", "model_token"):
                place = self._place(where, text, setting)
                if place is not None:
                    found[text] = Chosen(place, setting.force)
            elif setting.kind == "zero":
                found[text] = Chosen("zero", setting.force)
            elif setting.kind == "mean_of_subwords":
                found[text] = Chosen("subwords", setting.force)
            else:
                found[text] = Chosen(None, setting.force)
        return found

    def _place(self, where: str, text: str, setting: TokenSetting) -> tuple[int, int] | None:
        """(holder, row) of a model's token; None after reporting that it has none."""
        if setting.model is None or setting.model not in self.tokenizers:
            return None
        model = self.models[setting.model]
        label, rows = model.checkpoint.label, vocabulary_rows(model)
        widths = {_width(self.models.donor), _width(model)}
        if len(widths) > 1:
            self._error(
                f"{where}.source",
                f"the embeddings of {label} are {_width(model)} wide, those of "
                f"{self.models.donor.checkpoint.label} {_width(self.models.donor)}",
                "A row can only come from a model of the same width.",
            )
            return None
        number, wanted = setting.token_id, setting.token or text
        if number is None:
            ids = self.tokenizers[setting.model].ids
            if wanted not in ids:
                near = difflib.get_close_matches(wanted, ids, n=3, cutoff=0.6)
                hint = f"Similar tokens there: {', '.join(map(repr, near))}." if near else ""
                self._error(f"{where}.source", f"{label} has no token {wanted!r}", hint)
                return None
            number = ids[wanted]
        if number >= rows:
            named = "" if setting.token_id is not None else f" of {wanted!r}"
            self._error(
                f"{where}.source",
                f"{label} has no row {number}{named}: its embedding has rows 0 to {rows - 1}",
            )
            return None
        holders = tuple(h for h in self.holders if h in self.tokenizers)
        return holders.index(setting.model), number

    def _error(self, where: str, message: str, hint: str = "") -> None:
        self.problems.error(where, message, hint, self.recipe.line(where))


def _width(model: Model) -> int:
    names = model.layout.embeddings or model.layout.heads
    return model.layout.shapes[names[0]][-1] if names else 0

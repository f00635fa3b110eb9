"""What a merge does to every input's vocabulary, in numbers a user can check."""

from __future__ import annotations

from mergeloom.planning.models import Models
from mergeloom.planning.plan import ModelVocabulary, VocabularySummary
from mergeloom.planning.vocabularies import Decided, vocabulary_rows
from mergeloom.types import Recipe
from mergeloom.vocabulary.rows import MEAN, PADDING, ZERO, RowMap
from mergeloom.vocabulary.tokenizer import read_tokenizer


def summarize(recipe: Recipe, models: Models, decided: Decided) -> VocabularySummary | None:
    """The numbers of one merge; None when the donor has no tokenizer."""
    references = (*recipe.models(), *recipe.lenders())
    tokenizers = {r: t for r in references if (t := read_tokenizer(models[r].checkpoint))}
    tokenizers |= decided.tokenizers
    source = tokenizers.get(decided.source)
    if source is None:
        return None
    common, output = decided.common, decided.output
    ids = output.ids if output else source.ids
    rows = common.rows if common else vocabulary_rows(models.donor)
    names = models.donor.layout.embeddings or models.donor.layout.heads
    maps = common.maps(names[0]) if common and names else None
    described = []
    for reference in references:
        own = vocabulary_rows(models[reference])
        label = models[reference].checkpoint.label
        tokenizer = tokenizers.get(reference)
        if tokenizer is None:
            described.append(ModelVocabulary(label, None, own))
            continue
        number = common.holders.index(reference) if common and reference in common.holders else None
        lent = decided.among.index(tokenizer) if tokenizer in decided.among else None
        described.append(
            ModelVocabulary(
                label,
                len(tokenizer.ids),
                own,
                tokenizer.shared(source),
                sum(ids.get(t, i) != i for t, i in tokenizer.ids.items() if t in source.ids),
                tuple(t for t, who in output.appended if who == lent) if output else (),
                **_counts(maps.maps[number], number)
                if maps and number is not None
                else {"own": own},
            )
        )
    by_row = {row: token for token, row in ids.items()}
    return VocabularySummary(
        models[decided.source].checkpoint.label,
        len(ids),
        rows,
        tuple(described),
        tuple(map(str, output.conflicts)) if output else (),
        tuple(by_row[row] for row in maps.forced) if maps else (),
        maps.unknown if maps else (),
    )


def _counts(rows: RowMap, own: int) -> dict[str, int]:
    source = rows.source
    return {
        "own": int((source == own).sum()),
        "taken": int(((source >= 0) & (source != own)).sum()),
        "averaged": int((source == MEAN).sum()),
        "zero": int((source == ZERO).sum()),
        "padded": int((source == PADDING).sum()),
    }

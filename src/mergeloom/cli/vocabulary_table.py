"""The table of ``mergeloom tokenizer``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mergeloom.planning import ModelVocabulary, VocabularySummary

_SHOWN = 8
_COLUMNS = ("model", "tokens", "rows", "shared", "moved", "added", "own", "taken", "averaged",
            "zero", "padded")  # fmt: skip


def print_table(found: VocabularySummary) -> None:
    """One line for each model, then what is added, forced and in conflict."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # a file has no edge
    table = Table(box=None)
    for column in _COLUMNS:
        is_name = column == "model"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name)
    for model in found.models:
        table.add_row(*_cells(model))
    console.print(table)
    console.print(
        f"result: {found.tokens:,} tokens in {found.rows:,} rows, made from the tokenizer of "
        f"{escape(found.source)}"
    )
    for model in found.models:
        if model.adds:
            console.print(f"{escape(model.model)} adds {_some(model.adds)}")
    for what, tokens in (
        ("in conflict, the first model's meaning is kept", found.conflicts),
        ("forced", found.forced),
        ("without a row in any model, and so zero", found.unknown),
    ):
        if tokens:
            console.print(f"{what}: {_some(tokens)}")
    console.print(
        "shared: tokens the source has too; moved: those with another id there. own to padded: "
        "where the result's rows of a model come from before the models are merged."
    )


def _cells(model: ModelVocabulary) -> list[str]:
    numbers = [model.tokens, model.rows, model.shared, model.moved, len(model.adds), model.own,
               model.taken, model.averaged, model.zero, model.padded]  # fmt: skip
    return [escape(model.model), *("-" if n is None else f"{n:,}" for n in numbers)]


def _some(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - _SHOWN:,} more" if len(tokens) > _SHOWN else ""
    return escape(f"{len(tokens):,}: {', '.join(map(repr, tokens[:_SHOWN]))}{more}")

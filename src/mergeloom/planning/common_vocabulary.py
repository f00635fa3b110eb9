"""One vocabulary for all inputs: the row maps of every tensor and the views that follow them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mergeloom.planning.models import Models
from mergeloom.types import Missing, ModelReference, View
from mergeloom.vocabulary.mapped import MappedRows
from mergeloom.vocabulary.rows import Chosen, Holder, RowMaps, row_maps
from mergeloom.vocabulary.subwords import Subwords

if TYPE_CHECKING:
    from mergeloom.vocabulary.tokenizer import Tokenizer


@dataclass(frozen=True)
class CommonVocabulary:
    """The output's vocabulary and how each input's rows come into it.

    Args:
        models: the opened inputs.
        holders: the models whose rows can be used: those that are merged, then lenders.
        merged: how many of the holders are merged.
        tokenizers: of the holders.
        ids: output token → output row.
        rows: of the output's input embedding.
        donor: the holder whose tokenizer the output's is made from.
        base: the holder that is the recipe's base model, None without one.
        chosen, missing: what the recipe says of tokens.
    """

    models: Models
    holders: tuple[ModelReference, ...]
    merged: int
    tokenizers: tuple[Tokenizer, ...]
    ids: Mapping[str, int]
    rows: int
    donor: int = 0
    base: int | None = None
    chosen: Mapping[str, Chosen] = field(default_factory=dict)
    missing: Missing = "peers"
    _made: dict[tuple[tuple[int, ...], int], RowMaps] = field(default_factory=dict, repr=False)

    @cached_property
    def _axes(self) -> Mapping[str, int]:
        return {**dict.fromkeys(self.models.heads, 0), **self.models.donor.layout.vocabulary}

    @cached_property
    def _subwords(self) -> Subwords:
        return Subwords(self.tokenizers)

    def covers(self, name: str) -> bool:
        """Whether an output tensor has an entry for each token."""
        return name in self._axes

    def axis(self, name: str) -> int:
        """The axis along which a covered tensor has its entries."""
        return self._axes[name]

    def aligned(self, reference: ModelReference, name: str, view: View) -> View:
        """An input's tensor of this name in the output's vocabulary; unchanged where it fits."""
        if name not in self._axes:
            return view
        axis, own = self._axes[name], self.holders.index(reference)
        rows = self.maps(name).maps[own]
        if view.shape[axis] == len(rows) and rows.keeps(own):
            return view
        used = {own, *rows.sources()}
        tables = self._tables(name, view.shape)
        sources = tuple(t if i in used else None for i, t in enumerate(tables))
        return MappedRows(sources, own, rows, axis)

    def exact(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Element ranges of forced rows: equal in every input, and copied as they are."""
        if name not in self._axes:
            return ()
        axis = self._axes[name]
        width = math.prod(shape[axis + 1 :])
        starts = [
            (outer * shape[axis] + row) * width
            for outer in range(math.prod(shape[:axis]))
            for row in self.maps(name).forced
        ]
        return tuple((start, start + width) for start in starts)

    def rows_of(self, name: str) -> int:
        """How many entries an output tensor has for tokens.

        A table with more or fewer rows than the donor's embedding keeps the difference.
        """
        shapes, embeddings = self.models.donor.layout.shapes, self.models.donor.layout.embeddings
        if name not in shapes or not embeddings:
            return self.rows
        return self.rows + shapes[name][self._axes[name]] - shapes[embeddings[0]][0]

    def maps(self, name: str) -> RowMaps:
        """The row maps of an output tensor; tensors with equally many rows share theirs."""
        axis = self._axes[name]
        found = (self.models.tensor(holder, name) for holder in self.holders)
        shape = next(view.shape for view in found if view is not None)
        tables = self._tables(name, shape)
        counts = tuple(0 if t is None else t.shape[axis] for t in tables)
        key = (counts, self.rows_of(name))
        if key not in self._made:
            self._made[key] = row_maps(
                self.ids,
                key[1],
                [
                    Holder(t.ids, n, i < self.merged)
                    for i, (t, n) in enumerate(zip(self.tokenizers, counts, strict=True))
                ],
                donor=self.donor,
                base=self.base,
                chosen={token: _there(choice, counts) for token, choice in self.chosen.items()},
                missing=self.missing,
                subwords=self._subwords,
            )
        return self._made[key]

    def _tables(self, name: str, shape: tuple[int, ...]) -> tuple[View | None, ...]:
        """Every holder's tensor of this name, None where it has none that fits this shape."""
        axis = self._axes[name]
        rest = (*shape[:axis], *shape[axis + 1 :])
        found = [self.models.tensor(holder, name) for holder in self.holders]
        return tuple(
            view if view and (*view.shape[:axis], *view.shape[axis + 1 :]) == rest else None
            for view in found
        )


def _there(choice: Chosen, counts: tuple[int, ...]) -> Chosen:
    """The choice, or the default rule where its model has no such row of this tensor."""
    place = choice.place
    if isinstance(place, tuple) and place[1] >= counts[place[0]]:
        return replace(choice, place=None)
    return choice

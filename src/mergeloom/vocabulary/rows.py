"""Row maps: which row of which input feeds each row of a vocabulary tensor of the output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mergeloom.types import Missing

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.int64]]

ZERO, MEAN, PADDING = -1, -2, -3
"""What stands in place of an input: zeros, one of the map's means, the mean of all token rows."""

Subwords = Callable[[int, str], tuple[int, ...]]
"""(input, token text) → the ids into which that input's own tokenizer splits the text."""


@dataclass(frozen=True, eq=False)
class RowMap:
    """For each output row of one input where its numbers come from. Compares by content.

    Args:
        source: (rows,) the input a row is taken from, or ``ZERO``, ``MEAN``, ``PADDING``.
        row: (rows,) the row there; for ``MEAN`` the number of the mean.
        starts: (means + 1,) mean m is of the parts [starts[m], starts[m + 1]).
        parts: (parts, 2) input and row of every part of a mean.
    """

    source: Numbers
    row: Numbers
    starts: Numbers
    parts: Numbers

    @cached_property
    def digest(self) -> str:
        """sha256 of the content."""
        sha = hashlib.sha256()
        for array in (self.source, self.row, self.starts, self.parts):
            sha.update(repr(array.shape).encode())
            sha.update(array.astype("<i8").tobytes())
        return sha.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowMap) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"RowMap({len(self.row)} rows, {self.digest[:16]})"

    def __len__(self) -> int:
        return len(self.row)

    def keeps(self, own: int) -> bool:
        """Whether every row is the input ``own``'s row of the same number."""
        import numpy as np

        return bool((self.source == own).all() and (self.row == np.arange(len(self))).all())

    @property
    def averages(self) -> bool:
        """Whether any row is a mean of others."""
        return bool(((self.source == MEAN) | (self.source == PADDING)).any())

    def sources(self) -> tuple[int, ...]:
        """The inputs that rows are taken from, in ascending order."""
        import numpy as np

        averaged = np.zeros(len(self.starts) - 1, dtype=bool)
        averaged[self.row[self.source == MEAN]] = True
        parts = self.parts[np.repeat(averaged, np.diff(self.starts)), 0]
        found = np.concatenate([self.source[self.source >= 0], parts])
        return tuple(int(i) for i in np.unique(found))


@dataclass(frozen=True)
class Holder:
    """One model as a holder of rows.

    Args:
        ids: token → row, as its tokenizer says.
        rows: of its tensor; a token with an id beyond them has no row.
        merges: whether it takes part in the merge, or only lends rows to ``tokens``.
    """

    ids: Mapping[str, int]
    rows: int
    merges: bool = True


@dataclass(frozen=True)
class Chosen:
    """Where a token's row comes from by the recipe's ``tokens``.

    ``place`` is an (input, row); ``zero``; ``subwords``; or None for the default rule. ``force``
    gives every input that row, also those that know the token.
    """

    place: tuple[int, int] | Literal["zero", "subwords"] | None = None
    force: bool = False


@dataclass(frozen=True)
class RowMaps:
    """The row maps of one tensor, one for each holder, and what is worth telling about them.

    Args:
        maps: in the order of the holders.
        forced: output rows that are the same in every map and exact in the output.
        unknown: tokens without a row in any input, whose rows are zeros.
    """

    maps: tuple[RowMap, ...]
    forced: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass
class _Means:
    """Means in the making: rows that are averaged, each list of parts once."""

    numbers: dict[tuple[tuple[int, int], ...], int] = field(default_factory=dict)

    def number(self, parts: tuple[tuple[int, int], ...]) -> int:
        return self.numbers.setdefault(parts, len(self.numbers))

    def arrays(self) -> tuple[Numbers, Numbers]:
        import numpy as np

        lengths = [len(parts) for parts in self.numbers]
        flat = [pair for parts in self.numbers for pair in parts]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return starts, np.asarray(flat, dtype=np.int64).reshape(-1, 2)


def row_maps(
    ids: Mapping[str, int],
    rows: int,
    holders: Sequence[Holder],
    *,
    donor: int,
    base: int | None = None,
    chosen: Mapping[str, Chosen] | None = None,
    missing: Missing = "peers",
    subwords: Subwords | None = None,
) -> RowMaps:
    """Decide every row of one vocabulary tensor for every input.

    An input keeps its own row of a token it knows. Else the row is, in this order: what the
    recipe's ``tokens`` say; with ``missing`` other than ``peers`` what that says; the row of the
    only input that knows the token; the base's; the mean of the rows of those that know it; zeros.
    A row without a token is the donor's where the donor has it, else padding: the mean of the
    input's token rows.

    Args:
        ids: output token → output row.
        rows: of the output.
        holders: every input in the recipe's order, then models that only lend rows.
        donor: the holder whose tokenizer the output's is made from.
        base: the holder that is the recipe's base model.
        chosen: token → what the recipe says of it.
        missing: what a model that lacks a token gets: ``subword`` the mean of the rows of the
            pieces its own tokenizer splits the text into, ``mean`` the mean of all that know it.
        subwords: splits a text; needed for ``subword`` and ``mean_of_subwords``.
    """
    return _Deciding(ids, rows, holders, donor, base, chosen or {}, missing, subwords).run()


@dataclass
class _Deciding:
    """The state of one call of :func:`row_maps`."""

    ids: Mapping[str, int]
    rows: int
    holders: Sequence[Holder]
    donor: int
    base: int | None
    chosen: Mapping[str, Chosen]
    missing: Missing
    subwords: Subwords | None
    means: _Means = field(default_factory=_Means)

    def run(self) -> RowMaps:
        import numpy as np

        ids = {token: row for token, row in self.ids.items() if row < self.rows}
        own = self._own(ids)
        is_token = np.zeros(self.rows, dtype=bool)
        is_token[list(ids.values())] = True
        merging = np.asarray([h.merges for h in self.holders])
        known = (own >= 0) & merging[:, None] & is_token  # (holders, rows)
        source, row = self._defaults(own, known, ~is_token)
        placed = {token for token, choice in self.chosen.items() if choice.place is not None}
        unknown = tuple(t for t, r in ids.items() if source[r] == ZERO and t not in placed)
        forced: list[int] = []
        sources = np.tile(source, (len(self.holders), 1))
        picked = np.tile(row, (len(self.holders), 1))
        mine = own >= 0
        if self.missing != "peers":
            for token, r in ids.items():
                for i in np.flatnonzero(~mine[:, r]).tolist():
                    sources[i, r], picked[i, r] = self._missing(i, token, known[:, r], own, r)
        for token, choice in self.chosen.items():
            if token not in ids or choice == Chosen():
                continue
            r = ids[token]
            for i in range(len(self.holders)):
                sources[i, r], picked[i, r] = source[r], row[r]
                if choice.place is not None:
                    who = self.donor if choice.force else i
                    sources[i, r], picked[i, r] = self._placed(choice.place, who, token)
            if choice.force:
                mine[:, r] = False
                forced.append(r)
        numbers = np.arange(len(self.holders))[:, None]
        sources = np.where(mine, numbers, sources)
        picked = np.where(mine, own, picked)
        starts, parts = self.means.arrays()
        maps = tuple(RowMap(sources[i], picked[i], starts, parts) for i in range(len(self.holders)))
        return RowMaps(maps, tuple(sorted(forced)), unknown)

    def _own(self, ids: Mapping[str, int]) -> Numbers:
        """(holders, rows): an input's own row for each output row, −1 where it has none."""
        import numpy as np

        own = np.full((len(self.holders), self.rows), -1, dtype=np.int64)
        bare = np.ones(self.rows, dtype=bool)
        bare[list(ids.values())] = False
        for i, holder in enumerate(self.holders):
            theirs = {t: r for t, r in holder.ids.items() if r < holder.rows}
            pairs = [(r, theirs[t]) for t, r in ids.items() if t in theirs]
            if pairs:
                out, mine = np.asarray(pairs, dtype=np.int64).T
                own[i, out] = mine
            # Rows that no token names keep their place: padding, or rows kept for later tokens.
            free = np.zeros(self.rows, dtype=bool)
            free[: holder.rows] = True
            free[[r for r in theirs.values() if r < self.rows]] = False
            same = np.flatnonzero(free & bare)
            own[i, same] = same
        lent = self.holders[self.donor].rows
        own[:, lent:] = np.where(bare[None, lent:], -1, own[:, lent:])
        return own

    def _defaults(self, own: Numbers, known: Any, bare: Any) -> tuple[Numbers, Numbers]:
        """The row of those that have none of their own, when nothing else is said of it."""
        import numpy as np

        count = known.sum(0)
        source = np.full(self.rows, ZERO, dtype=np.int64)
        row = np.zeros(self.rows, dtype=np.int64)
        only = np.flatnonzero(count == 1)
        source[only] = known[:, only].argmax(0)
        for r in np.flatnonzero(count > 1):
            if not (self.base is not None and known[self.base, r]):
                source[r], row[r] = MEAN, self._mean(known[:, r], own, int(r))
        if self.base is not None:
            theirs = np.flatnonzero(known[self.base])
            source[theirs] = self.base
        taken = np.flatnonzero(source >= 0)
        row[taken] = own[source[taken], taken]
        lent = np.flatnonzero(bare & (own[self.donor] >= 0))
        source[lent], row[lent] = self.donor, own[self.donor, lent]
        source[bare & (own[self.donor] < 0)] = PADDING
        return source, row

    def _mean(self, known: Any, own: Numbers, r: int) -> int:
        return self.means.number(tuple((i, int(own[i, r])) for i, has in enumerate(known) if has))

    def _missing(
        self, holder: int, token: str, known: Any, own: Numbers, r: int
    ) -> tuple[int, int]:
        if self.missing == "subword":
            return self._placed("subwords", holder, token)
        if self.missing == "mean" and known.any():
            return MEAN, self._mean(known, own, r)
        return ZERO, 0

    def _placed(
        self, place: tuple[int, int] | Literal["zero", "subwords"], holder: int, token: str
    ) -> tuple[int, int]:
        if place == "zero":
            return ZERO, 0
        if place != "subwords":
            return place
        if self.subwords is None:
            raise ValueError("no tokenizers to split texts with")
        rows = self.holders[holder].rows
        pieces = [i for i in self.subwords(holder, token) if i < rows]
        if not pieces:
            return ZERO, 0
        return MEAN, self.means.number(tuple((holder, i) for i in pieces))

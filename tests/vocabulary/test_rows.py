"""Every output row of every input equals a naive reference, however the rows are asked for."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.checkpoint import MemoryTensor
from mergeloom.checkpoint.views import read_bytes
from mergeloom.engine.scratch import Scratch
from mergeloom.vocabulary.mapped import MappedRows
from mergeloom.vocabulary.rows import Chosen, Holder, row_maps

WORDS = list("abcdefgh")


@st.composite
def cases(draw):
    """Random small vocabularies with holes, ids beyond the rows, and settings for single tokens."""
    holders = []
    for _ in range(draw(st.integers(1, 4))):
        words = draw(st.lists(st.sampled_from(WORDS), unique=True, min_size=1))
        numbers = draw(st.permutations(range(len(words) + draw(st.integers(0, 3)))))
        rows = draw(st.integers(1, len(words) + 4))
        ids = dict(zip(words, numbers, strict=False))
        merges = not holders or draw(st.booleans())
        holders.append(Holder(ids, rows, merges))
    words = draw(st.lists(st.sampled_from([*WORDS, "new"]), unique=True, min_size=1))
    numbers = draw(st.permutations(range(len(words) + draw(st.integers(0, 3)))))
    out = dict(zip(words, numbers, strict=False))
    rows = max(out.values()) + 1 + draw(st.integers(0, 3))
    chosen = {}
    for word in draw(st.lists(st.sampled_from(words), unique=True, max_size=3)):
        lender = draw(st.integers(0, len(holders) - 1))
        row = draw(st.integers(0, holders[lender].rows - 1))
        place = draw(st.sampled_from([None, "zero", "subwords", (lender, row)]))
        chosen[word] = Chosen(place, draw(st.booleans()))
    return {
        "ids": out,
        "rows": rows,
        "holders": holders,
        "donor": draw(st.integers(0, len(holders) - 1)),
        "base": draw(st.sampled_from([None, 0])),
        "chosen": chosen,
        "missing": draw(st.sampled_from(["peers", "subword", "mean", "zero"])),
    }


def subwords(holder: int, text: str) -> tuple[int, ...]:
    return tuple(range(len(text) % 3 + holder % 2))


def naive(case: dict, tables: list[torch.Tensor]) -> list[torch.Tensor]:
    """The rule of the documentation, one row at a time, in float64."""
    holders, donor, base = case["holders"], case["donor"], case["base"]
    width = tables[0].shape[1]
    words = {row: word for word, row in case["ids"].items()}
    done = []

    def usable(i, word):
        return holders[i].ids.get(word, 1 << 30) < holders[i].rows

    def own(i, word):
        return tables[i][holders[i].ids[word]].double()

    def pieces(i, word):
        found = [tables[i][p].double() for p in subwords(i, word) if p < holders[i].rows]
        return sum(found) / len(found) if found else torch.zeros(width, dtype=torch.float64)

    def placed(place, i, word):
        if place == "zero":
            return torch.zeros(width, dtype=torch.float64)
        if place == "subwords":
            return pieces(i, word)
        return tables[place[0]][place[1]].double()

    def default(word):
        having = [i for i, h in enumerate(holders) if h.merges and usable(i, word)]
        if not having:
            return torch.zeros(width, dtype=torch.float64)
        if base is not None and base in having:
            return own(base, word)
        return sum(own(i, word) for i in having) / len(having)

    for i in range(len(holders)):
        rows, padding = [], []
        for r in range(case["rows"]):
            word = words.get(r)
            if word is None:
                taken = {x for x in holders[i].ids.values() if x < holders[i].rows}
                lent = {x for x in holders[donor].ids.values() if x < holders[donor].rows}
                has = r < holders[i].rows and r not in taken
                donor_has = r < holders[donor].rows and r not in lent
                if r < holders[donor].rows and has:
                    rows.append(tables[i][r].double())
                elif donor_has:
                    rows.append(tables[donor][r].double())
                else:
                    padding.append(r)
                    rows.append(None)
                continue
            choice = case["chosen"].get(word, Chosen())
            if choice.force and choice.place is not None:
                rows.append(placed(choice.place, donor, word))
            elif choice.force:
                rows.append(default(word))
            elif usable(i, word):
                rows.append(own(i, word))
            elif choice.place is not None:
                rows.append(placed(choice.place, i, word))
            elif case["missing"] == "peers":
                rows.append(default(word))
            elif case["missing"] == "subword":
                rows.append(pieces(i, word))
            elif case["missing"] == "zero":
                rows.append(torch.zeros(width, dtype=torch.float64))
            else:
                having = [j for j, h in enumerate(holders) if h.merges and usable(j, word)]
                found = sum((own(j, word) for j in having), torch.zeros(width).double())
                rows.append(found / max(1, len(having)))
        real = [row for row in rows if row is not None]
        mean = sum(real) / len(real)
        done.append(torch.stack([mean if row is None else row for row in rows]))
    return done


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0, 1]), st.randoms(use_true_random=False))
def test_every_row_is_the_one_the_rules_name(case, axis, random):
    width = random.choice([1, 3])
    tables = [torch.randn(h.rows, width, dtype=torch.float32) for h in case["holders"]]
    expected = naive(case, tables)
    made = row_maps(**case, subwords=subwords)
    laid = [t if axis == 0 else t.T.contiguous() for t in tables]
    sources = tuple(MemoryTensor(t) for t in laid)
    scratch = Scratch()
    for i, rows in enumerate(made.maps):
        view = MappedRows(sources, i, rows, axis)
        want = expected[i] if axis == 0 else expected[i].T
        assert view.shape == tuple(want.shape)
        size = want.numel()
        cuts = sorted({0, size, *(random.randrange(size + 1) for _ in range(3))})
        got = [view.read(a, b, scratch, "x").clone() for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(got).double(), want.reshape(-1), rtol=1e-6, atol=1e-6)
    for row in made.forced:
        word = next(w for w, r in case["ids"].items() if r == row)
        assert case["chosen"][word].force
        assert all(torch.equal(expected[0][row], other[row]) for other in expected)


def test_rows_that_are_only_moved_keep_their_bits_and_their_dtype():
    table = torch.randn(4, 5).to(torch.bfloat16)
    made = row_maps({"b": 0, "a": 1}, 2, [Holder({"a": 0, "b": 3}, 4)], donor=0)
    view = MappedRows((MemoryTensor(table),), 0, made.maps[0])
    assert view.dtype == view.saved_dtype == "BF16"
    got = view.read(0, 10, Scratch(), "x").view(2, 5)
    assert torch.equal(got, table[[3, 0]])
    inside = table[[3, 0]].view(-1)[3:9].view(torch.uint8)
    assert read_bytes(view, 3, 9, Scratch(), "x") == inside.numpy().tobytes()


def test_a_mean_is_formed_in_float32_and_saved_as_the_input_is():
    made = row_maps({"a": 0}, 2, [Holder({"a": 0}, 1)], donor=0)
    view = MappedRows((MemoryTensor(torch.ones(1, 2).half()),), 0, made.maps[0])
    assert (view.dtype, view.saved_dtype) == ("F32", "F16")


@pytest.mark.parametrize("missing", ["peers", "mean"])
def test_a_token_that_no_input_has_is_told(missing):
    made = row_maps({"a": 0, "z": 1}, 2, [Holder({"a": 0}, 1)], donor=0, missing=missing)
    assert made.unknown == ("z",)

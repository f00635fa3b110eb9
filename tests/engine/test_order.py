"""Is the k-th largest exact whatever the sample said, and are its equals shared out in order?"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.in_torch.evaluation import bits_of, kept_largest
from mergeloom.engine.order import Search
from mergeloom.engine.sizes import sample_of, sample_step
from mergeloom.methods import Largest

RANGE = 40


def found(
    scores: np.ndarray, counts: list[int], sample: np.ndarray, room: int = 1 << 20
) -> tuple[Search, int]:
    """A search that was told of this sample, and how many passes it took."""
    search = Search(Largest(lambda block: block.deltas, lambda *_: [counts]), scores.size, room)
    search.sample(0, bits_of(torch.from_numpy(sample)).reshape(1, 1, -1))
    search.bracket()
    for passes in range(1, 100):
        for span, start in enumerate(range(0, scores.size, RANGE)):
            bits = bits_of(torch.from_numpy(scores[start : start + RANGE]))
            tallies = search.tallies()
            for tally in tallies.values():
                tally.add(bits[:7])
                tally.add(bits[7:])
            search.absorb(span, tallies)
            kept = [some for c in search._counted.values() for some in c.kept.values()]
            assert sum(block.nbytes for some in kept for block in some) <= room
        if not search.settle():
            return search, passes
    raise AssertionError("the search does not end")


levels = st.lists(st.integers(0, 6), min_size=1, max_size=150)
samples = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@settings(max_examples=150)
@given(levels, samples, st.data(), st.sampled_from([np.float32, np.float64]),
       st.sampled_from([0, 30, 1000]))  # fmt: skip
def test_every_sample_leads_to_the_same_elements(values, told, data, kind, room):
    scores = np.array(values, dtype=kind) / 8
    counts = data.draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=3))
    search, _ = found(scores, counts, np.array(told, dtype=kind) / 8, room)
    by_size = np.argsort(-scores, kind="stable")
    for count, choice in zip(counts, search.choices[0], strict=True):
        kept = []
        for span, start in enumerate(range(0, scores.size, RANGE)):
            part = torch.from_numpy(scores[start : start + RANGE] + 1)  # shows a chosen zero
            budget = choice.budgets.get(span, 0)
            smaller = torch.from_numpy(scores[start : start + RANGE].copy())
            chosen, _ = kept_largest(choice, smaller, budget)
            kept.append((chosen != 0) & (part > 1))
        wanted = np.zeros(scores.size, bool)
        wanted[by_size[:count]] = True
        assert np.array_equal(torch.cat(kept).numpy(), wanted & (scores > 0))


def test_a_good_sample_takes_one_pass_and_a_bad_one_ends_too():
    scores = np.random.default_rng(0).random(20000, dtype=np.float32)
    assert found(scores, [10000], scores[::7].copy())[1] == 1
    for wrong in (scores[:3000] + 5, scores[:3000] * 0, np.full(3000, np.inf, "f4")):
        search, passes = found(scores, [10000], wrong)
        assert 1 < passes < 9
        assert search.choices[0][0].threshold == np.sort(scores)[10000]


def test_little_room_costs_a_pass_for_each_byte_of_a_score_at_most():
    scores = np.random.default_rng(0).random(4000, dtype=np.float32)
    wanted = np.sort(scores)
    for sample in (scores[::7].copy(), scores[:10] * 0):
        for room in (0, 100, 4000):
            search, passes = found(scores, [2000, 10], sample, room)
            assert passes < 12
            thresholds = [choice.threshold for choice in search.choices[0]]
            assert thresholds == [wanted[-2000], wanted[-10]]


@given(st.integers(1, 10**6), st.sampled_from([1, 3, 700, 4096]), st.integers(1, 50))
def test_samples_are_whole_rows_inside_their_range_and_few(rows, row, ranges):
    size = rows * row
    span = -(-rows // ranges) * row
    kept = 0
    for start in range(0, size, span):
        stop = min(start + span, size)
        last = start
        pieces = sample_of(start, stop, size, row)
        kept += sum(b - a for a, b in pieces) // sample_step(pieces, start, stop, size)
        for first, behind in pieces:
            assert last <= first < behind <= stop
            assert first % row == 0
            assert behind % row == 0
            last = behind
    assert kept <= 8 * max(16 * 1024, min(size ** (2 / 3), 1 << 20))

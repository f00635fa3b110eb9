"""Every processor gives the same bytes: each variant of tiles.c that runs here against the best."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_library import variants_for_this_processor
from test_programs import ODD, SIZES, STEPS, floats, recorded

from mergeloom.engine.native import programs
from mergeloom.engine.native.library import COUNT, CUT, Operation, run_program
from mergeloom.engine.native.programs import Program, address, compiled
from mergeloom.engine.native.values import Values, chosen, constant, kept, loaded, spread
from mergeloom.engine.randomness import Chance
from mergeloom.engine.scratch import Scratch

LEVELS = [{"any": 1, "v3": 3, "v4": 4}[n.rpartition("_")[2]] for n in variants_for_this_processor()]
OUTPUTS = {"F32": "u4", "BF16": "u2", "F16": "u2"}


def test_each_level_has_its_variant():
    found = [address_of(level) for level in LEVELS]
    assert len(set(found)) == len(LEVELS)
    assert address_of(99) == found[-1]


def address_of(level: int) -> int:
    address = ctypes.cast(run_program(level), ctypes.c_void_p).value
    assert address is not None
    return address


def program_of(steps, wide: bool) -> Program:
    """All operations, and random ones behind them."""
    a, b, c, flags = (loaded(i) for i in range(4))
    made: list[Values] = [
        a,
        b,
        c,
        a + 0.3 * b,
        (a - b) / c,
        (1.0 / a) * flags,
        spread(0, 5) * constant(0.1),
    ]
    made += [(a - b).abs() / 3.0 * 0.7, b.sign() + c, c.clamp(min=-0.5, max=2.5), a + 0.25]
    made += [chosen(2.0 - a, Chance(5, 700, 2**31)), (a * b).clamp(min=-0.5)]
    made += [((a + b).sign() + 0.5).sign(), (2.0 * b - a).sign(), (a / 2.0 - b).square()]
    for name, first, second in steps:
        one = made[first % len(made)]
        other = made[second % len(made)] if isinstance(second, int) else second
        made.append(recorded(one, name, other))
    sums = [x.sum() for x in made[3:]] + [(x * y).sum() for x, y in zip(made, made[3:])]  # noqa: B905
    return compiled([made[-1], *made[3:12], kept(made[-1], 0)], sums, [(made[-1].abs(), 0)],
                    wide=wide)  # fmt: skip


def test_the_program_has_every_operation():
    used = {Operation(i["operation"]) for wide in (False, True)
            for i in program_of([], wide).instructions}  # fmt: skip
    assert used == set(Operation)


def results(level: int, program: Program, size: int, inputs, dtype: str, monkeypatch):
    """Stored bytes, what is counted of them, and totals, by one variant."""
    monkeypatch.setattr(programs, "run_program", lambda: run_program(level))
    rows = np.zeros((11, size), OUTPUTS[dtype])
    inside = np.zeros(size, np.uint32)
    low, high, common = np.array([0.25, 2.0, 0.5], np.float32).view("u4")
    counts = np.array([(low, high, common, 1, 0, 0, 0, 0, address(inside))], COUNT)
    cuts = np.array([(0.5, 0.5, 3)], CUT)
    totals, bad = program.run(
        [(0, size)], inputs, Scratch(), cuts=cuts, counts=counts,
        outputs=[(row, dtype) for row in rows],
    )  # fmt: skip
    numbers = tuple(counts[0][name] for name in ("above", "equal", "nonzero", "found"))
    exact = rows.tobytes(), bad, cuts.tobytes(), numbers, inside[: counts[0]["found"]].tobytes()
    return exact, totals


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), size=SIZES, steps=STEPS, wide=st.booleans(),
       dtype=st.sampled_from(list(OUTPUTS)))  # fmt: skip
def test_all_variants_give_the_same(seed, size, steps, wide, dtype):
    program = program_of(steps, wide)
    first, second, third = floats(seed, 3, size)
    with np.errstate(over="ignore"):
        arrays = [first, (second.view("u4") >> 16).astype("u2"), third.astype("f2"),
                  (np.arange(size) % 3 == 0)]  # fmt: skip
    inputs = [(x, k) for x, k in zip(arrays, ("F32", "BF16", "F16", "BOOL"), strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        wanted, totals = results(LEVELS[-1], program, size, inputs, dtype, patch)
        for level in LEVELS[:-1]:
            got, sums = results(level, program, size, inputs, dtype, patch)
            assert got == wanted
            some = ~np.isnan(totals)
            assert np.array_equal(some, ~np.isnan(sums))
            assert sums[some].tobytes() == totals[some].tobytes()


def near_every_half() -> np.ndarray:
    """Every half, the middle between it and the next, the floats beside all these, and odd ones."""
    halves = np.arange(2**16, dtype=np.uint16).view("f2").astype("f4").view("u4")
    near = [halves + np.uint32(step) for step in (0, 1, 2**12 - 1, 2**12, 2**12 + 1)]
    small = (np.arange(2**12 + 1) * 2.0**-26).astype("f4")  # quarters of the smallest half
    beside = [np.nextafter(small, np.float32(x)) for x in (-1, 1)]
    limits = np.array([65504, 65519.996, 65520, 65536, 1e5, 3e38], "f4")
    return np.concatenate([np.concatenate(near).view("f4"), small, -small, *beside, limits, ODD])


@pytest.mark.parametrize("level", LEVELS)
def test_halves_are_loaded_and_stored_as_numpy_does(level, monkeypatch):
    monkeypatch.setattr(programs, "run_program", lambda: run_program(level))
    program = compiled(stored=[loaded(0)])
    every = np.arange(2**16, dtype=np.uint16)
    for raw, kind in ((every, "F16"), (near_every_half().view("u4"), "F32")):
        for dtype in ("F16", "F32"):
            numbers = raw.view({"F16": "f2", "F32": "f4"}[kind])
            with np.errstate(over="ignore", invalid="ignore"):
                wanted = numbers.astype({"F16": "f2", "F32": "f4"}[dtype])
            bits = np.where(np.isnan(wanted), {"F16": 0x7E00, "F32": 0x7FC00000}[dtype],
                            wanted.view(OUTPUTS[dtype]))  # fmt: skip
            out = np.zeros(len(raw), OUTPUTS[dtype])
            _, bad = program.run([(0, len(raw))], [(raw, kind)], Scratch(),
                                 outputs=[(out, dtype)])  # fmt: skip
            assert np.array_equal(out, bits)
            assert bad == np.count_nonzero(~np.isfinite(wanted))

"""Formulas recorded and run in tiles give what numpy gives, to the bit."""

from __future__ import annotations

import functools
import operator
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.checkpoint.open_files import open_file
from mergeloom.engine.kernel import Place
from mergeloom.engine.native.library import COUNT, CUT, TILE, run_program
from mergeloom.engine.native.programs import Stored, address, compiled
from mergeloom.engine.native.shared_object import CHUNK
from mergeloom.engine.native.values import Values, chosen, constant, kept, loaded, spread
from mergeloom.engine.randomness import Chance, plain_words
from mergeloom.engine.scratch import Scratch
from mergeloom.errors import CheckpointError, OutputError

SIZES = st.sampled_from([0, 1, 3, TILE - 1, TILE, TILE + 1, 3 * TILE + 17])
ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-42, -1e-42, 3.4e38, 1.0, -2.5], np.float32)


def test_the_library_is_there():
    assert run_program() is not None, "run make native"


def floats(seed: int, count: int, size: int) -> list[np.ndarray]:
    """Float32 of all magnitudes, a few of them odd."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        row = (random.standard_normal(size) * 10.0 ** random.integers(-6, 6, size)).astype("f4")
        odd = random.random(size) < 0.05
        row[odd] = random.choice(ODD, int(odd.sum()))
        made.append(row)
    return made


class Naive:
    """The same operations on float32 arrays, each rounded on its own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.asarray(values, np.float32)

    def apply(self, name: str, other: Naive | float | None) -> Naive:
        a = self.values
        b = other.values if isinstance(other, Naive) else np.float32(0 if other is None else other)
        with np.errstate(all="ignore"):
            return Naive(
                {
                    "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b,
                    "div": lambda: a / b, "radd": lambda: b + a, "rsub": lambda: b - a,
                    "rmul": lambda: b * a, "rdiv": lambda: b / a, "neg": lambda: -a,
                    "abs": lambda: np.abs(a), "square": lambda: a * a,
                    "sign": lambda: np.where(np.isnan(a), 0, np.sign(a)),
                    "clamp": lambda: np.where(a < b, b, a),
                    "side": lambda: np.where(a < 0, -1, 1),
                    "sub_squared": lambda: (a - b) * (a - b),
                    "add_scaled": lambda: a + b * np.float32(0.3),
                    "add_sign": lambda: a + np.where(np.isnan(b), 0, np.sign(b)),
                    "add_scaled_sign": lambda: (
                        a + np.where(np.isnan(b), 0, np.sign(b)) * np.float32(0.3)
                    ),
                    "mul_clamp": lambda: np.where(a * b < 0.25, np.float32(0.25), a * b),
                }[name]()
            )  # fmt: skip


def recorded(values: Values, name: str, other: Values | float | None) -> Values:
    return {
        "add": lambda: values + other, "sub": lambda: values - other,
        "mul": lambda: values * other, "div": lambda: values / other,
        "radd": lambda: other + values, "rsub": lambda: other - values,
        "rmul": lambda: other * values, "rdiv": lambda: other / values,
        "neg": lambda: -values, "abs": values.abs, "square": values.square,
        "sign": values.sign, "clamp": lambda: values.clamp(min=other),
        "side": lambda: (values.sign() + 0.5).sign(),
        "sub_squared": lambda: (values - other).square(),
        "add_scaled": lambda: values + other * 0.3,
        "add_sign": lambda: values + other.sign(),
        "add_scaled_sign": lambda: other.sign() * 0.3 + values,
        "mul_clamp": lambda: (values * other).clamp(min=0.25),
    }[name]()  # fmt: skip


FOUR = ["add", "sub", "mul", "div"]
TWO = [*FOUR, "sub_squared", "add_scaled", "add_sign", "add_scaled_sign", "mul_clamp"]
NUMBER = [*FOUR, "radd", "rsub", "rmul", "rdiv", "clamp"]
ONE = ["neg", "abs", "square", "sign", "side"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(TWO), st.integers(0, 99), st.integers(0, 99)),
        st.tuples(st.sampled_from(NUMBER), st.integers(0, 99), st.floats(-4, 4, width=32)),
        st.tuples(st.sampled_from(ONE), st.integers(0, 99), st.none()),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1000), size=SIZES, steps=STEPS)
def test_any_formula_gives_what_numpy_gives(seed, size, steps):
    rows = floats(seed, 3, size)
    naive, made = [Naive(row) for row in rows], [loaded(i) for i in range(3)]
    for name, first, second in steps:
        a, b = first % len(made), second % len(made) if isinstance(second, int) else second
        other = isinstance(second, int)
        made.append(recorded(made[a], name, made[b] if other else b))
        naive.append(naive[a].apply(name, naive[b] if other else b))
    out = np.full(size, 7, np.float32)
    program = compiled(stored=[made[-1]])
    inputs = [(row, "F32") for row in rows]
    _, bad = program.run([(0, size)], inputs, Scratch(), outputs=[(out, "F32")])
    wanted = naive[-1].values
    assert bad == np.count_nonzero(~np.isfinite(wanted))
    assert np.array_equal(np.isnan(out), np.isnan(wanted))
    some = ~np.isnan(wanted)
    assert np.array_equal(out[some].view("u4"), wanted[some].view("u4"))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_every_number_of_a_format_is_loaded_and_stored(dtype):
    torch = pytest.importorskip("torch")
    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    near = (1, 1 + 2**-8, 1 + 2**-9, 1 + 2**-8 + 2**-20)  # ties of both formats, and beside them
    more = torch.cat([every * factor for factor in near])
    for source in (more, more.to(kind)):
        wanted, raw = source.to(kind), source.contiguous()
        name = {v: k for k, v in {"F32": torch.float32, "BF16": torch.bfloat16,
                                  "F16": torch.float16}.items()}[raw.dtype]  # fmt: skip
        out = torch.empty_like(wanted)
        _, bad = compiled(stored=[loaded(0)]).run(
            [(0, len(raw))],
            [(raw.view(torch.uint8).numpy(), name)],
            Scratch(),
            outputs=[(out.view(torch.uint8).numpy(), dtype)],
        )
        torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)
        assert bad == int((~wanted.isfinite()).sum())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=SIZES, wide=st.booleans())
def test_totals_are_those_of_float64(seed, size, wide):
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, size)).astype("f4")
    x, y = loaded(0), loaded(1)
    program = compiled(totals=[x.sum(), (x * y).sum(), (1.0 - x).sum()], wide=wide)
    totals, _ = program.run([(0, size)], [(a, "F32"), (b, "F32")], Scratch())
    a, b = a.astype("f8"), b.astype("f8")
    sizes = np.array([np.abs(a).sum(), np.abs(a * b).sum(), np.abs(1 - a).sum()])
    wanted = np.array([a.sum(), (a * b).sum(), (1 - a).sum()])
    exact = 1e-14 if wide else 2e-7  # beyond what 1 - x is rounded by
    slack = np.array([exact, exact, exact + 1e-7]) * sizes + 1e-30
    assert (np.abs(totals - wanted) <= slack).all()


@pytest.mark.parametrize("row", [1, 2, 5, TILE - 1, TILE, 3 * TILE + 1])
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_a_number_for_each_row_is_spread_over_it(row, rows):
    numbers = np.random.default_rng(row).standard_normal(rows).astype("f4")
    out = np.empty(rows * row, np.float32)
    program = compiled(stored=[spread(0, row)], totals=[spread(0, row).sum()], wide=True)
    everything = [(0, rows * row)]
    totals, _ = program.run(everything, [(numbers, "F32")], Scratch(), outputs=[(out, "F32")])
    assert np.array_equal(out, np.repeat(numbers, row))
    assert totals[0] == pytest.approx(float(numbers.astype("f8").sum() * row), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), size=SIZES, budget=st.integers(0, 200), data=st.data())
def test_counts_and_cuts(seed, size, budget, data):
    random = np.random.default_rng(seed)
    values = random.integers(-9, 9, size).astype("f4") / 8
    low, high = sorted(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9))))
    common = data.draw(st.integers(low, high))
    bits = {k: np.float32(v / 8).view("u4") for k, v in
            {"low": low, "high": high, "common": common}.items()}  # fmt: skip
    inside = np.empty(size, np.uint32)
    of_nonzero = data.draw(st.booleans())
    count = np.zeros(1, COUNT)
    for name, value in {**bits, "inside": address(inside), "of_nonzero": of_nonzero}.items():
        count[0][name] = value
    cut = np.array([(low / 8, low / 8, budget)], CUT)
    out = np.empty(size, np.float32)
    x = loaded(0)
    program = compiled(stored=[kept(x, 0)], counted=[(x.abs(), 0)])
    program.run([(0, size)], [(values, "F32")], Scratch(),
                outputs=[(out, "F32")], cuts=cut, counts=count)  # fmt: skip
    scores = np.abs(values)
    between = scores[(scores >= low / 8) & (scores <= high / 8) & (scores != common / 8)]
    found = inside[: count[0]["found"]].view("f4")
    assert np.array_equal(found, between)
    assert count[0]["above"] == np.count_nonzero(scores > high / 8)
    assert count[0]["equal"] == np.count_nonzero(scores == common / 8)
    assert count[0]["nonzero"] == of_nonzero * np.count_nonzero(scores)
    equal = np.flatnonzero(scores == low / 8)[:budget]
    wanted = np.where(scores > low / 8, values, 0)
    wanted[equal] = values[equal]
    assert np.array_equal(out, wanted)
    assert cut[0]["budget"] == budget - len(equal)


def test_a_number_is_the_same_everywhere():
    out = np.empty(TILE + 3, np.float32)
    compiled(stored=[constant(0.1)]).run([(0, len(out))], [], Scratch(), outputs=[(out, "F32")])
    assert (out == np.float32(0.1)).all()


def test_a_formula_over_very_many_models():
    """Its chain of additions is longer than Python's stack is deep."""
    rows = np.random.default_rng(1).integers(-9, 9, (60, 5)).astype("f4")
    inputs = [loaded(i) for i in range(len(rows))]
    pairs = [(one - other).square() for i, one in enumerate(inputs) for other in inputs[:i]]
    program = compiled(stored=[functools.reduce(operator.add, pairs)])
    out = np.empty(rows.shape[1], np.float32)
    program.run([(0, len(out))], [(row, "F32") for row in rows], Scratch(),
                outputs=[(out, "F32")])  # fmt: skip
    assert np.array_equal(out, len(rows) * (rows**2).sum(0) - rows.sum(0) ** 2)


@pytest.mark.parametrize(
    "use",
    [lambda x: x == 0, lambda x: x != 0, lambda x: x > 0, lambda x: 1.0 if x else 2.0,
     lambda x: operator.iadd(x, 1.0), lambda x: operator.imul(x, x)],
)  # fmt: skip
def test_what_symbols_cannot_tell_is_left_to_torch(use):
    with pytest.raises(TypeError):
        use(loaded(0))


@pytest.mark.parametrize(
    "pieces",
    [[(0, 0)], [(3, 8)], [(7, CHUNK + 3 * TILE)], [(5, 1005), (1000, 2000), (2001, 3001)]],
)
def test_what_is_in_files_gives_what_is_in_memory(tmp_path, pieces):
    random = np.random.default_rng(1)
    size = CHUNK + 5 * TILE
    whole = [random.standard_normal(size).astype("f4"), random.integers(0, 2**14, size, "u2")]
    path = tmp_path / "weights"
    path.write_bytes(b"head5" + whole[0].tobytes() + b"!" + whole[1].tobytes())
    rows = [np.concatenate([tensor[a:b] for a, b in pieces]) for tensor in whole]
    a, b = loaded(0), loaded(1)
    program = compiled(stored=[a - b, chosen(a, Chance(1, 30000, 0))], totals=[(a * b).sum()])
    file = open_file(path)
    places = [Stored(file, 5, "F32"), Stored(file, 6 + whole[0].nbytes, "BF16")]
    found = []
    for inputs in (list(zip(rows, ("F32", "BF16"), strict=True)), places):
        out = np.zeros((2, len(rows[0])), np.float32)
        totals, _ = program.run(pieces, inputs, Scratch(), outputs=[(row, "F32") for row in out])
        found.append((out.tobytes(), totals.tobytes()))
    assert found[0] == found[1]
    assert written(tmp_path / "out", program, pieces, places, size) == found[0]
    numbers = (rows[1].astype("u4") << 16).view("f4")
    assert np.array_equal(out[0], rows[0] - numbers)
    words = plain_words(1, 0, size)
    kept_ = np.concatenate([words[a:b] for a, b in pieces]) < 30000
    assert np.array_equal(out[1], np.where(kept_, rows[0], rows[0] * 0))


def written(path, program, pieces, places, size) -> tuple[bytes, bytes]:
    """What a program writes into a file with two tensors, of its pieces; one run for each."""
    path.write_bytes(b"\xff" * (3 + 2 * 4 * size))
    fd = os.open(path, os.O_RDWR)
    targets = [Place(fd, 3, "F32"), Place(fd, 3 + 4 * size, "F32")]
    totals = np.zeros(program.totals)
    for piece in pieces:
        program.run([piece], places, Scratch(), outputs=targets, totals=totals)
    os.close(fd)
    tensors = np.frombuffer(path.read_bytes(), np.float32, offset=3).reshape(2, size)
    untouched = np.ones(size, np.bool_)
    for start, stop in pieces:
        untouched[start:stop] = False
    assert np.all(tensors[:, untouched].view("u4") == 0xFFFFFFFF)
    rows = [np.concatenate([tensor[a:b] for a, b in pieces]) for tensor in tensors]
    return np.array(rows).tobytes(), totals.tobytes()


def test_a_file_that_cannot_be_written_is_an_error_that_says_why(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(bytes(400))
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OutputError, match="output: cannot be written: Bad file"):
        compiled(stored=[constant(1)]).run([(0, 9)], [], Scratch(), outputs=[Place(fd, 0, "F32")])
    os.close(fd)


def test_a_file_that_ends_too_early_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    inputs = [(np.zeros(40, np.float32), "F32"), Stored(open_file(path), 8, "F32")]
    program = compiled(stored=[loaded(0) + loaded(1)])
    with pytest.raises(CheckpointError, match=r"weights was changed .* wanted 160 bytes at 8"):
        program.run([(0, 40)], inputs, Scratch(), outputs=[(np.zeros(40, np.float32), "F32")])

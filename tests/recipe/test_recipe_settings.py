"""Filters, gradients and tensor patterns."""

from __future__ import annotations

import fnmatch
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.recipe import matches, resolve_setting, selects
from mergeloom.types import Conditional

GRADIENTS = [
    ((0, 0.5, 0.3, 0.7, 1), 9, [0.0, 0.25, 0.5, 0.4, 0.3, 0.5, 0.7, 0.85, 1.0]),
    ((0, 0.5, 0.3, 0.7, 1), 6, [0.0, 0.4, 0.38, 0.46, 0.76, 1.0]),
    ((1, 0), 1, [0.0]),
    ((0.25,), 4, [0.25, 0.25, 0.25, 0.25]),
    ((0, 1), 2, [0.0, 1.0]),
]


def position(layer: int, layers: int) -> float:
    return 1.0 if layers == 1 else layer / (layers - 1)


@pytest.mark.parametrize(("values", "layers", "expected"), GRADIENTS)
def test_golden_gradients(values, layers, expected):
    setting = (Conditional(None, values),)
    found = [resolve_setting(setting, "x", position(i, layers)) for i in range(layers)]
    assert found == pytest.approx(expected, abs=1e-12)


ATTENTION = (
    Conditional("self_attn", (0, 1)),
    Conditional("mlp", 0.25),
    Conditional(None, 0.5),
)
LAYER_ONE = (Conditional("layers.1.", 1), Conditional("*", 2))
FILTERS = [
    (ATTENTION, 0.5, "model.layers.3.self_attn.q_proj.weight", 0.5),
    (ATTENTION, 0.5, "model.layers.3.mlp.up_proj.weight", 0.25),
    (ATTENTION, 0.5, "model.layers.3.input_layernorm.weight", 0.5),
    (ATTENTION, 0.5, "lm_head.weight", 0.5),
    (LAYER_ONE, 0, "model.layers.1.mlp.up_proj.weight", 1),
    (LAYER_ONE, 0, "model.layers.11.mlp.up_proj.weight", 2),
    (LAYER_ONE, 0, "model.norm.weight", 2),
    ((Conditional("attn", 1),), 0, "model.layers.0.mlp.up_proj.weight", None),
]


@pytest.mark.parametrize(("setting", "t", "name", "expected"), FILTERS)
def test_golden_filters(setting, t, name, expected):
    assert resolve_setting(setting, name, t) == expected


def test_booleans_and_words_are_picked_not_mixed():
    flags = (Conditional(None, (True, False, True)),)
    assert [resolve_setting(flags, "x", t) for t in (0, 0.49, 0.5, 0.99, 1)] == [
        True, True, False, False, True,
    ]  # fmt: skip
    words = (Conditional(None, ("true", "density")),)
    assert [resolve_setting(words, "x", t) for t in (0, 0.9, 1)] == ["true", "true", "density"]
    # 29 / 49 * 49 falls an ulp short of 29
    many = (Conditional(None, tuple(i == 29 for i in range(50))),)
    assert resolve_setting(many, "x", 29 / 49) is True


def test_whole_numbers_stay_whole_at_the_elements():
    setting = (Conditional(None, (1000, 2000)),)
    assert repr(resolve_setting(setting, "x", 0.0)) == "1000"
    assert repr(resolve_setting(setting, "x", 1.0)) == "2000"


def test_filters():
    name = "model.layers.5.self_attn.q_proj.weight"
    assert matches(None, name)
    assert matches("*", name)
    assert matches("self_attn", name)
    assert not matches("Self_attn", name)
    assert not matches("*attn*", name)
    assert matches("glob:*.self_attn.*", name)
    assert not matches("glob:self_attn", name)
    assert matches(r"re:layers\.[0-9]\.", name)
    assert not matches("re:^layers", name)


def test_selection():
    name = "model.layers.5.self_attn.q_proj.weight"
    assert not selects((), name)
    assert selects(("lm_head*", "*.self_attn.*"), name)
    assert not selects(("self_attn",), name)
    assert selects(("glob:model.*",), name)
    assert selects((r"re:q_proj\.weight$",), name)


NAMES = st.sampled_from(["a.mlp.b", "a.attn.b", "norm", "layers.1.x", "layers.11.x"])
NUMBERS = st.floats(-1e6, 1e6)
FILTER = st.sampled_from([None, "*", "mlp", "glob:*.mlp.*", "re:^l", "layers.1"])
SETTINGS = st.lists(
    st.builds(Conditional, FILTER, NUMBERS | st.lists(NUMBERS, min_size=1, max_size=6).map(tuple)),
    max_size=4,
).map(tuple)


def plain_match(pattern, name):
    if pattern in (None, "*"):
        return True
    kind, _, rest = pattern.partition(":")
    if kind == "glob":
        return re.fullmatch(fnmatch.translate(rest), name) is not None
    return re.search(rest, name) is not None if kind == "re" else pattern in name


def plainly(setting, name, t):
    for entry in setting:
        if plain_match(entry.filter, name):
            v = entry.value if isinstance(entry.value, tuple) else (entry.value,)
            q = t * (len(v) - 1)
            i = min(math.floor(q), len(v) - 1)
            j = min(len(v) - 1, i + 1)
            return (1 - (q - i)) * v[i] + (q - i) * v[j]
    return None


@given(
    SETTINGS,
    NAMES,
    st.integers(1, 100).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))),
)
def test_against_a_plain_reading_of_the_rule(setting, name, place):
    t = position(*place)
    found, wanted = resolve_setting(setting, name, t), plainly(setting, name, t)
    assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-7, abs=2e-3))

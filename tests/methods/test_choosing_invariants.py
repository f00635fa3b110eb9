"""What must hold for the methods that choose elements, whatever the numbers are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from grid import drawn_models, merge_named
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import exact, one_tensor, same_bits

import mergeloom

SPARSE = ["ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs",
          "breadcrumbs_ties", "consensus_ties"]  # fmt: skip
WEIGHTED = [*SPARSE, "consensus_ta"]
FREE = ["sce", "ram", "ramplus_tl"]
PAIRS = ["nearswap", "arcee_fusion"]
densities = st.sampled_from([0.3, 0.5, 0.7])


def own(method: str, density: float, weight: float = 1.0) -> dict[str, Any]:
    """Parameters of one model, valid for a method."""
    made: dict[str, Any] = {} if method in FREE + PAIRS else {"weight": weight}
    if method in SPARSE:
        made["density"] = density
    return made


def shared(method: str) -> dict[str, Any]:
    return {"t": 0.01} if method == "nearswap" else {}


ALL = [*WEIGHTED, *FREE, *PAIRS]


@pytest.mark.parametrize("method", [*ALL, "model_stock"])
@settings(max_examples=12)
@given(drawn_models(2, 4), densities)
def test_models_that_equal_the_base_change_nothing(method, drawn, density):
    base = drawn.tensors()[0]
    count = 1 if method in PAIRS else len(drawn.kinds) - 1
    each = [{} if method == "model_stock" else own(method, density)] * count
    got = one_tensor(method, [base] * count, each, base=base, **shared(method))
    assert torch.equal(got, base)


@pytest.mark.parametrize("method", ALL)
@settings(max_examples=8)
@given(drawn_models(1, 1))
def test_the_base_alone_is_the_result(method, drawn):
    base = drawn.tensors()[0]
    if method != "arcee_fusion":  # needs another model
        assert same_bits(one_tensor(method, [], [], base=base,
                                    **shared(method)), base)  # fmt: skip


@pytest.mark.parametrize("method", SPARSE)
@settings(max_examples=12)
@given(drawn_models(1, 3))
def test_density_zero_gives_the_base(method, drawn):
    base, *others = drawn.tensors()
    for rescale in (True, False, "density"):
        got = one_tensor(method, others, [own(method, 0.0)] * len(others), base=base,
                         rescale=rescale)  # fmt: skip
        assert torch.equal(got, base)


@pytest.mark.parametrize(
    ("method", "dense", "normalize"),
    [("dare_linear", "task_arithmetic", False), ("della_linear", "task_arithmetic", True),
     ("breadcrumbs", "task_arithmetic", True), ("dare_ties", "ties", False),
     ("della", "ties", True), ("breadcrumbs_ties", "ties", True)],
)  # fmt: skip
@settings(max_examples=15)
@given(drawn_models(1, 3), st.sampled_from([True, False, "density"]))
def test_density_one_is_the_dense_method(method, dense, normalize, drawn, rescale):
    base, *others = drawn.tensors()
    weights = [{"weight": w} for w in (0.5, 0.25, 2.0)][: len(others)]
    got = one_tensor(method, others, [{**w, "density": 1.0} for w in weights], base=base,
                     normalize=normalize, rescale=rescale, out=torch.float64)  # fmt: skip
    wanted = one_tensor(dense, others, weights, base=base, normalize=normalize, out=torch.float64)
    size = sum(abs(t.double()) for t in (base, *others)) * 4
    assert bool(((got - wanted).abs() <= 1e-14 * size).all())


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", "sce", "ram", "ramplus_tl",
                                    "consensus_ties"])  # fmt: skip
@settings(max_examples=15)
@given(drawn_models(3, 3, st.sampled_from([1, 3, 40])), densities)
def test_the_order_of_models_does_not_matter(method, drawn, density):
    base, *others = drawn.tensors()
    each = [own(method, density, w) for w in (1.0, 0.5, 2.0)]
    results = [
        exact(one_tensor(method, [others[i] for i in order], [each[i] for i in order], base=base,
                         out=torch.float64))
        for order in itertools.permutations(range(3))
    ]  # fmt: skip
    for result in results[1:]:
        assert result.size == 0 or abs(result - results[0]).max() < 1e-12


@pytest.mark.parametrize("method", ["ties", "sce", "ram", "breadcrumbs_ties"])
@settings(max_examples=15)
@given(drawn_models(1, 1, st.sampled_from([1, 3, 40])))
def test_identical_models_give_that_model(method, drawn):
    base, other = drawn.tensors()
    got = one_tensor(method, [other] * 3, [own(method, 1.0)] * 3, base=base, out=torch.float64,
                     **({"normalize": True} if "ties" in method else {}))  # fmt: skip
    assert abs(got - other.double()).sum() < 1e-9


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize(("density", "epsilon", "most"),
                         [(0.1, 0.15, "0.1"), (0.9, 0.15, "0.1"), (0.5, 0.5, "0.5"),
                          (0.15, 0.15, "0.15")])  # fmt: skip
def test_keep_probabilities_beyond_0_to_1_are_refused(method, density, epsilon, most):
    """While planning: no tensor is touched."""
    x = torch.ones(3, 4)
    with pytest.raises(mergeloom.RecipeError, match=rf"epsilon.*must be below {most}"):
        merge_named(method, {"m": x}, x, each={"weight": 1, "density": density, "epsilon": epsilon})
    for edge in (0.0, 1.0):
        merge_named(method, {"m": x}, x, each={"weight": 1, "density": edge, "epsilon": epsilon})


@pytest.mark.parametrize("method", [*ALL, "model_stock", "multislerp", "karcher"])
def test_integer_buffers_pass_through(method):
    ids = torch.arange(5)
    models = {n: {"ids": ids, "w": torch.randn(3, 4)} for n in ("base", "m0", "m1", "m2")}
    count = 1 if method in PAIRS else 3
    weight = {"multislerp": {"weight": 1.0}}.get(method, {})
    each = own(method, 0.5) if method in ALL else weight
    recipe = {
        "merge_method": method,
        "models": [{"model": f"m{i}", "parameters": each} for i in range(count)],
        "parameters": shared(method),
        **({} if method == "karcher" else {"base_model": "base"}),
    }
    used = {m: models[m] for m in ["base", *(f"m{i}" for i in range(count))]}
    if method == "karcher":
        del used["base"]
    merged = mergeloom.merge_state_dicts(recipe, used)
    assert same_bits(merged["ids"], ids)
    assert merged["w"].shape == (3, 4)


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("method", "density"), [
    *((name, 0.5) for name in [*ALL, "model_stock", "multislerp"]),
    *((name, 0.0) for name in SPARSE),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_not_a_number_is_an_error_and_never_hidden(method, density, bad):
    base, other = torch.randn(40, 5), torch.randn(40, 5)
    other[7, 3] = bad
    count = 1 if method in PAIRS else 2
    each = own(method, density) if method in ALL else {}
    if method == "multislerp":
        each = {"weight": 1.0}
    good = {f"m{i}": torch.randn(40, 5) for i in range(count - 1)}
    with pytest.raises(mergeloom.MergeError, match="NaN or infinite"):
        merge_named(method, {"bad": other, **good}, base, each=each, **shared(method))

"""What formulas may use: the built-in ones only what is written down, others all of torch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grid import BLOCK, grid
from inputs import exact, one_tensor

from mergeloom.methods import METHODS, Arguments, Elementwise, Largest, Parameter, Totals, method
from mergeloom.methods.declaration import Block, Values

SUBSET = {name for name in vars(Values) if inspect.isfunction(vars(Values)[name])
          and name not in ("__init__", "__subclasshook__")}  # fmt: skip


class Symbol:
    """Stands for values and can do nothing but what :class:`Values` has: no bool, no length."""

    def __bool__(self) -> bool:
        raise TypeError("a formula must not ask whether values are true")

    __eq__ = None  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def operation(name: str) -> Callable[..., Symbol]:
    def apply(self: Symbol, *others: Any, **limits: float) -> Symbol:
        inspect.signature(vars(Values)[name]).bind(self, *others, **limits)
        assert all(type(other) in (Symbol, float, int) for other in others), others
        assert all(type(limit) in (float, int) for limit in limits.values()), limits
        return Symbol()

    return apply


for operator in SUBSET:
    setattr(Symbol, operator, operation(operator))


def symbols(known: list[np.ndarray], models: int = 3) -> Any:
    """A block of symbols whose measures found ``known``."""

    def kept(*given: Any) -> Symbol:
        assert isinstance(given[-1], Symbol)
        return Symbol()

    return SimpleNamespace(
        base=Symbol(), deltas=[Symbol() for _ in range(models)], shape=(4, 5),
        known=lambda measure: known[measure], threshold=lambda *_: 0.5,
        keep_largest=kept, keep_by_chance=kept, keep_by_rank=kept,
        mean_rank=lambda model: Symbol(), row_divergence=lambda model, floor: Symbol(),
    )  # fmt: skip


def shape_of(sums: Any) -> tuple[int, ...]:
    if isinstance(sums, Symbol):
        return ()
    (inner,) = {shape_of(part) for part in sums}
    return (len(sums), *inner)


def settings_of(name: str) -> Iterator[Arguments]:
    """Every choice, both of every flag, all of a share or a part; three models if they may be."""
    some = {"weight": (1.0, -0.3), "density": (0.5, 0.0), "select_topk": (1.0, 0.5),
            "lambda": (1.0, 0.7), "t": (0.1,)}  # fmt: skip

    def values(parameter: Parameter) -> tuple[Any, ...]:
        if parameter.kind == "choice":
            return parameter.choices
        if parameter.kind == "bool" and parameter.name != "int8_mask":
            return (False, True)
        return some.get(parameter.name, (parameter.default,))

    parameters = METHODS[name].parameters
    for chosen in itertools.product(*map(values, parameters)):
        given = {p.name: value for p, value in zip(parameters, chosen, strict=True)}
        own = {p.name: given.pop(p.name) for p in parameters if p.per_model}
        fewest, most = METHODS[name].models
        others = [own] * ((fewest or 1) - 1 if most else 2)
        first = {**own, "density": 1.0} if "density" in own else own
        yield Arguments(given, (first, *others), has_base=True)


def test_a_block_of_symbols_has_what_a_block_has():
    names = {name for name in vars(Block) if not name.startswith("_")}
    assert names == set(vars(symbols([])))


ELEMENTWISE = [
    name
    for name in METHODS
    if isinstance(METHODS[name].formula(next(settings_of(name))), Elementwise)
]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_built_in_formulas_use_only_the_subset(name):
    """So that the engine's own loops can run them."""
    for arguments in settings_of(name):
        formula, models = METHODS[name].formula(arguments), len(arguments.per_model)
        known: list[np.ndarray] = []
        for measure in formula.measures:
            if isinstance(measure, Largest):
                rows = measure.scores(symbols(known, models))
                assert all(isinstance(row, Symbol) for row in rows)
                assert len(measure.counts([20] * len(rows), 20)) == len(rows)
                known.append(np.zeros(0))
            else:
                known.append(np.ones(shape_of(measure.of(symbols(known, models)))))
        assert isinstance(formula.apply(symbols(known, models)), Symbol)


@pytest.fixture
def register() -> Iterator[Callable[..., Any]]:
    """Like ``mergeloom.method``, and what it added is gone after the test."""
    before = dict(METHODS)
    yield method
    for name in set(METHODS) - set(before):
        del METHODS._known[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_method_of_ones_own_may_use_all_of_torch(register, dtype):
    """Masks, functions of torch, and changes in place: of what it made and of its deltas."""

    def total(block: Any) -> list[Any]:
        sizes = block.deltas[0].abs_()
        return [torch.where(sizes > 0.1, sizes, torch.zeros(())).sum(), sizes.gt(0.1).sum()]

    def apply(block: Any) -> Any:
        size, count = block.known(0)
        mean = torch.maximum(*block.deltas).add_(block.deltas[1].mul_(2))
        mean[block.deltas[0] == 0] = 0.0
        return torch.tanh(mean).mul_(float(size / count)).add_(block.base)

    @register(name="own", title="Own", summary="Own.", use="Here.", base="required")
    def own(arguments: Arguments) -> Elementwise:
        return Elementwise(apply, (Totals(total),))

    base, one, two = (t.to(dtype) for t in grid((3, BLOCK // 2 + 5), (torch.float64,) * 3, 1, 3))
    a, b = exact(one) - exact(base), exact(two) - exact(base)
    factor = np.abs(a)[np.abs(a) > 0.1].mean()
    wanted = exact(base) + np.tanh(np.where(a == 0, 0, np.maximum(a, b) + 2 * b)) * factor
    got = one_tensor("own", [one, two], [{}, {}], base=base, out=torch.float64)
    np.testing.assert_allclose(exact(got), wanted, rtol=1e-12)
    short = one_tensor("own", [one, two], [{}, {}], base=base, out=dtype)
    np.testing.assert_allclose(exact(short), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_random_choices_of_different_probability_are_different_choices(register):
    """Also in a later pass."""

    def of(block: Any) -> list[Any]:
        return [values.sum() for values in chosen(block)]

    def chosen(block: Any) -> list[Any]:
        return [block.keep_by_chance(0, p, block.base * 0.0 + 1.0) for p in (0.2, 0.8)]

    def apply(block: Any) -> Any:
        rare, often = chosen(block)
        return rare + often * 2.0

    @register(name="own", title="Own", summary="Own.", use="Here.", base="required")
    def own(arguments: Arguments) -> Elementwise:
        return Elementwise(apply, (Totals(of),))

    base, one = torch.zeros(40, 50), torch.ones(40, 50)
    got = one_tensor("own", [one], [{}], base=base, out=torch.float32)
    rare, often = (got % 2 == 1).float().mean(), (got >= 2).float().mean()
    assert abs(rare - 0.2) < 0.05
    assert abs(often - 0.8) < 0.05


def test_a_mask_by_equality_is_a_mask(register):
    """Symbols cannot compare; what they would say must not be taken for an answer."""

    def apply(block: Any) -> Any:
        delta = block.deltas[0]
        delta += 1.0 - (block.base == 2.0) * 1.0
        return block.deltas[0] + block.base

    @register(name="own", title="Own", summary="Own.", use="Here.", base="required")
    def own(arguments: Arguments) -> Elementwise:
        return Elementwise(apply)

    base = torch.tensor([1.0, 2.0, 3.0])
    got = one_tensor("own", [base], [{}], base=base, out=torch.float32)
    assert got.tolist() == [2.0, 2.0, 4.0]

"""What a merge method is: a formula, its parameters and its words. No I/O, no device, no YAML."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from mergeloom.types import Scalar

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Note = Callable[[str], None]
"""Reports something about one tensor that the user should read after the merge."""


class MethodError(ValueError):
    """These parameters or inputs have no result; the message says why in one sentence."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Args:
        name: as in the recipe.
        help: one plain phrase for users.
        kind: ``float``, ``int``, ``bool`` or ``choice``.
        default: the value when the recipe says nothing. None with ``required`` False means
            the method has its own rule for an absent value.
        required: whether every model (or the recipe) must give it.
        per_model: read for each input that is not the base, falling back to the global value;
            otherwise read once per tensor from the global levels.
        low, high: inclusive range, None for unbounded.
        choices: the allowed words of a ``choice``.
    """

    name: str
    help: str
    kind: Literal["float", "int", "bool", "choice"] = "float"
    default: Scalar | None = None
    required: bool = False
    per_model: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """Every parameter of one output tensor as plain numbers.

    ``shared`` holds the global ones, ``per_model`` one mapping for each input that is not the
    base, in the recipe's order. Defaults are filled in.
    """

    shared: Mapping[str, Scalar | None]
    per_model: tuple[Mapping[str, Scalar | None], ...]
    has_base: bool

    def number(self, name: str) -> float:
        """A global parameter as a float."""
        value = self.shared[name]
        if value is None or isinstance(value, str):
            raise MethodError(f"{name} is not a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A global parameter as a bool."""
        return bool(self.shared[name])

    def each(self, name: str) -> list[float]:
        """A per-model parameter of every input that is not the base, as floats."""
        values = [given[name] for given in self.per_model]
        numbers = [float(v) for v in values if v is not None and not isinstance(v, str)]
        if len(numbers) != len(values):
            raise MethodError(f"{name} is missing for some of the models")
        return numbers


Vectors = Literal["tensor", "last", "first"]
"""What inner products are taken of: the whole tensor flattened, every vector along the last axis,
or every vector along the first axis."""


@dataclass(frozen=True)
class WeightedSum:
    """``Σ cᵢ xᵢ`` over the inputs, or ``base + Σ cᵢ (xᵢ − base)`` with ``deltas``.

    ``coefficients`` is a tuple when it depends on the parameters alone: one streaming pass.
    Otherwise it is a function of the Gram matrix of the inputs (or of their deltas), float64 of
    shape (..., k, k), that returns coefficients of shape (..., k): two streaming passes.

    The inputs are ordered base first (only without ``deltas``, when the method has a base), then
    as in the recipe. The Gram matrix is taken of ``vectors``.
    """

    coefficients: tuple[float, ...] | Callable[[Array, Note], Array]
    deltas: bool = False
    vectors: Vectors = "tensor"


BASE_ALONE = WeightedSum((), deltas=True)
"""The result when there is nothing but the base."""

UNCHANGED = WeightedSum((1.0,))
"""The sum that is a copy."""


class Values(Protocol):
    """Consecutive elements of a tensor as the arithmetic sees them: shape (elements,), float32, or
    float64 if an input or the output is.

    A formula that uses nothing but what stands here runs in the engine's own loops: it is called
    once with symbols in place of numbers. Where that fails, and on GPUs, it is called for every
    block with torch tensors, so it may use all of torch, at torch's speed. There are no
    comparisons here: instead of choosing by a mask, multiply with a :meth:`sign` that was shifted
    and clamped to 0 and 1. Unlike a mask, a product lets no NaN or infinity of an input disappear.
    """

    def __add__(self, other: Self | float, /) -> Self: ...
    def __radd__(self, other: float, /) -> Self: ...
    def __sub__(self, other: Self | float, /) -> Self: ...
    def __rsub__(self, other: float, /) -> Self: ...
    def __mul__(self, other: Self | float, /) -> Self: ...
    def __rmul__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: Self | float, /) -> Self: ...
    def __rtruediv__(self, other: float, /) -> Self: ...
    def __neg__(self) -> Self: ...

    def abs(self) -> Self:
        """The sizes."""
        ...

    def sign(self) -> Self:
        """1 or -1; 0 for 0 and NaN."""
        ...

    def square(self) -> Self:
        """The product with itself."""
        ...

    def clamp(self, *, min: float | None = None, max: float | None = None) -> Self:  # noqa: A002
        """What is below ``min`` or above ``max`` becomes that; NaN stays."""
        ...

    def sum(self) -> Self:
        """All elements added up: one number, for :class:`Totals` alone."""
        ...


class Block(Protocol):
    """What an elementwise method sees: the same stretch of elements of every input.

    Nothing here changes what it is given.
    """

    @property
    def base(self) -> Values:
        """The base's elements."""
        ...

    @property
    def deltas(self) -> Sequence[Values]:
        """Every other input minus the base, in the recipe's order."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole output tensor."""
        ...

    def known(self, measure: int) -> Array:
        """The totals that measure number ``measure`` of the formula found, in float64 and in the
        shape of the list it returned."""
        ...

    def threshold(self, measure: int, score: int, choice: int) -> float:
        """The smallest score among the chosen largest; infinity when none are chosen."""
        ...

    def keep_largest(self, measure: int, score: int, choice: int, values: Values) -> Values:
        """The values that are among the chosen largest of the tensor, 0 for the others.

        The magnitudes of ``values`` must be row ``score`` of the scores of that :class:`Largest`;
        ``choice`` is an index into the counts of that row. Of equal elements the one with the
        lower flat index counts as larger. A function of a formula may call it once for a choice.
        """
        ...

    def keep_by_chance(self, model: int, probability: float, values: Values) -> Values:
        """Each value with ``probability``, else 0: the same for a seed, output tensor and model
        whatever the threads, the memory or the order of models."""
        ...

    def keep_by_rank(self, model: int, lowest: float, highest: float, values: Values) -> Values:
        """Each value with a probability, else 0. It rises from ``lowest`` to ``highest`` with the
        rank of the size of the model's delta along axis 1; equals have the mean of theirs. Only in
        blocks of whole rows."""
        ...

    def mean_rank(self, model: int) -> Values:
        """The rank of the size of the model's delta along axis 1, divided by the largest rank: 0
        to 1, equals have the mean of theirs. Only in blocks of whole rows."""
        ...

    def row_divergence(self, model: int, floor: float) -> Values:
        """The same number for all elements of a row along the last axis: Σ p log(p / q) ≥ 0, where
        p and q are the softmaxes of the model's row and of the base's, each plus ``floor``, as
        exact as in float64. Only in blocks of whole rows."""
        ...


Sums = Values | Sequence["Sums"]
"""One sum, or a list of lists of sums."""


@dataclass(frozen=True)
class Totals:
    """A pass that adds up numbers over a tensor.

    ``of`` maps a block to :meth:`Values.sum` of some values, in a (nested) list of the same shape
    for every block; the totals are its sum over all blocks, in order, in float64.
    """

    of: Callable[[Block], Sums]


@dataclass(frozen=True)
class Largest:
    """A pass that finds exactly the k-th largest of non-negative scores, without sorting.

    It reads a sample, then everything; and everything again in the rare case that the sample
    misled.
    ``scores`` maps a block to a list of rows of scores, one for each element. ``counts`` maps (the
    number of non-zero scores of each row, the number of elements) to how many of the largest to
    choose, several choices for each row. Without ``of_nonzero`` the first argument is an estimate,
    0 if and only if the sample has no non-zero score.
    """

    scores: Callable[[Block], Sequence[Values]]
    counts: Callable[[Sequence[int], int], Sequence[Sequence[int]]]
    of_nonzero: bool = False


@dataclass(frozen=True)
class Elementwise:
    """A method that works element by element once some facts about the whole tensor are known.

    Args:
        apply: a block to its output elements.
        measures: what must be known first, each by its own passes over the inputs, in order.
        whole_rows: whether blocks must hold all of an index of the first axis (the whole tensor
            for one axis), because elements of a row depend on each other.
    """

    apply: Callable[[Block], Values]
    measures: tuple[Totals | Largest, ...] = ()
    whole_rows: bool = False


Formula = WeightedSum | Elementwise
"""What a method makes of its arguments. Further contracts are further kinds of formula."""


def passes(formula: Formula | None) -> int:
    """How often a formula reads all of its inputs. None is a copy."""
    if isinstance(formula, WeightedSum):
        return 1 if isinstance(formula.coefficients, tuple) else 2
    if formula is None:
        return 1
    return 1 + len(formula.measures)


@dataclass(frozen=True)
class Method:
    """A merge method. ``formula`` turns the arguments of one tensor into what the engine runs.

    Args:
        name: the name in a recipe.
        title: the display name for tables and model cards.
        summary: two plain sentences: what it does.
        use: when to choose it, one sentence.
        formula: arguments → formula; raises MethodError for arguments without a result. Its
            docstring is the formula that users read.
        parameters: what it reads.
        base: whether a base model is ``required``, ``optional`` or ``unused``.
        models: smallest and largest number of inputs besides the base; None is unbounded.
        reference: the paper or page.
        example: a recipe that runs, with made-up model names.
        differs: what is not as in mergekit 0.1.5 or the paper, for people who know those.
    """

    name: str
    title: str
    summary: str
    use: str
    formula: Callable[[Arguments], Formula]
    parameters: tuple[Parameter, ...] = ()
    base: Literal["required", "optional", "unused"] = "unused"
    models: tuple[int, int | None] = (1, None)
    reference: str = ""
    example: str = ""
    differs: str = ""

    @property
    def formula_text(self) -> str:
        """The formula in words and signs: paragraphs, and indented lines of arithmetic."""
        return (inspect.getdoc(self.formula) or "").replace("``", "`")

    def parameter(self, name: str) -> Parameter | None:
        """The declaration of one parameter, or None if the method does not read it."""
        return next((p for p in self.parameters if p.name == name), None)

"""Formulas as they are recorded: calling one with symbolic values gives what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergeloom.engine.native.library import Operation
from mergeloom.engine.randomness import Chance

Number = int | float


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """The elements of a block, not computed yet; see :class:`mergeloom.methods.Values`.

    Args:
        operation: what makes them, of ``parts`` and of the numbers ``x`` and ``y``.
        at: the input or the cut it reads.
        each: elements that one number of the input is for.
        chance: what chooses them at random.
    """

    operation: Operation
    parts: tuple[Values, ...] = ()
    x: float = 0.0
    y: float = 0.0
    at: int = 0
    each: int = 0
    chance: Chance | None = None

    def __add__(self, other: Values | Number) -> Values:
        return self._with(other, Operation.ADD, Operation.ADD_NUMBER)

    __radd__ = __add__

    def __sub__(self, other: Values | Number) -> Values:
        if isinstance(other, Number):
            return self + -other
        return self._with(other, Operation.SUB, None)

    def __rsub__(self, other: Number) -> Values:
        return self._with(other, None, Operation.FROM_NUMBER)

    def __mul__(self, other: Values | Number) -> Values:
        return self._with(other, Operation.MUL, Operation.MUL_NUMBER)

    __rmul__ = __mul__

    def __truediv__(self, other: Values | Number) -> Values:
        return self._with(other, Operation.DIV, Operation.DIV_NUMBER)

    def __rtruediv__(self, other: Number) -> Values:
        return self._with(other, None, Operation.INTO_NUMBER)

    def __neg__(self) -> Values:
        return self * -1.0

    def __abs__(self) -> Values:
        return self.abs()

    def __bool__(self) -> bool:
        raise TypeError("values that are not computed yet are neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise TypeError("values that are not computed yet cannot be compared")

    __hash__ = object.__hash__

    # In torch these change what other names may stand for, so they are torch's to do.
    __iadd__ = __isub__ = __imul__ = __itruediv__ = None

    def abs(self) -> Values:
        """Sizes."""
        return Values(Operation.ABS, (self,))

    def sign(self) -> Values:
        """-1, 0 or 1."""
        return Values(Operation.SIGN, (self,))

    def square(self) -> Values:
        """Each times itself."""
        return self * self

    def clamp(self, min: Number | None = None, max: Number | None = None) -> Values:  # noqa: A002 - torch's names
        """At least ``min``, at most ``max``."""
        low = -math.inf if min is None else float(min)
        high = math.inf if max is None else float(max)
        return Values(Operation.CLAMP, (self,), low, high)

    def sum(self) -> Total:
        """The sum of all elements; of products, without making them first."""
        return Total(self.parts if self.operation is Operation.MUL else (self,))

    def _with(
        self, other: Values | Number, both: Operation | None, number: Operation | None
    ) -> Values:
        if isinstance(other, Values) and both is not None:
            return Values(both, (self, other))
        if isinstance(other, Number) and number is not None:
            return Values(number, (self,), float(other))
        return NotImplemented  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of values, or of the products of two, not computed yet."""

    parts: tuple[Values, ...]


def loaded(number: int) -> Values:
    """An input of a program."""
    return Values(Operation.LOAD, at=number)


def spread(number: int, each: int) -> Values:
    """An input of float32 numbers, each for as many elements."""
    return Values(Operation.SPREAD, at=number, each=each)


def kept(values: Values, number: int) -> Values:
    """Values that a cut chooses, and zeros."""
    return Values(Operation.KEEP, (values,), at=number)


def chosen(values: Values, chance: Chance) -> Values:
    """Values that chance chooses, and their products with zero."""
    return Values(Operation.CHANCE, (values,), chance=chance)


def constant(number: float) -> Values:
    """The same number everywhere."""
    return Values(Operation.NUMBER, x=number)

"""What methods say about their parameters, and values checked and converted by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mergeloom.recipe.settings import SettingError, finite, plain_number
from mergeloom.recipe.words import shown, with_guess
from mergeloom.types import Conditional, Scalar, Setting


class ParameterWords(Protocol):
    """The declaration of one parameter of a method."""

    @property
    def name(self) -> str:
        """The name as recipes write it."""
        ...

    @property
    def kind(self) -> str:
        """``float``, ``int``, ``bool`` or ``choice``."""
        ...

    @property
    def low(self) -> float | None:
        """The smallest value allowed, or None."""
        ...

    @property
    def high(self) -> float | None:
        """The largest value allowed, or None."""
        ...

    @property
    def choices(self) -> Iterable[Any] | None:
        """The values of a ``choice``: words, and true or false."""
        ...

    @property
    def help(self) -> str:
        """One sentence for users."""
        ...


class MethodWords(Protocol):
    """The declaration of one method."""

    @property
    def parameters(self) -> Iterable[ParameterWords]:
        """Everything the method reads."""
        ...


@dataclass(frozen=True)
class LegacyParameter:
    """A parameter that belongs to no method but is read all the same."""

    name: str
    kind: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: Sequence[Any] | None = None


EMBED_SLERP = LegacyParameter(
    "embed_slerp",
    "bool",
    "Merge the rows of the embeddings that both models have by slerp, the others linearly.",
)

# Named here only so that a parameter written one level too high is recognised even when no
# methods are given; values are always checked against a method's own declaration.
_FAMILIAR = (
    "weight density t normalize rescale lambda scale epsilon gamma int8_mask select_topk "
    "max_iter tol filter_wise nuslerp_flatten nuslerp_row_wise consensus_method embed_slerp eps"
)
FAMILIAR_PARAMETERS = frozenset(_FAMILIAR.split())

_YES = {"true", "yes", "on", "1", "1.0"}
_NO = {"false", "no", "off", "0", "0.0"}


def known_parameters(methods: Mapping[str, MethodWords] | None) -> dict[str, ParameterWords]:
    """The parameters of every method by name, in order of first appearance."""
    found: dict[str, ParameterWords] = {}
    for method in () if methods is None else methods.values():
        for parameter in method.parameters:
            found.setdefault(parameter.name, parameter)
    found.setdefault(EMBED_SLERP.name, EMBED_SLERP)
    return found


def converted(setting: Setting, parameter: ParameterWords | None) -> tuple[Setting, list[str]]:
    """A setting with every value in the type its declaration asks for.

    Without a declaration only texts that are numbers change, into numbers.

    Returns:
        The setting and the mistakes found in its values; mistaken values stay as they were.
    """
    mistakes: list[str] = []

    def convert(value: Scalar) -> Scalar:
        try:
            return typed(value, parameter) if parameter else _number_or_text(value)
        except SettingError as error:
            mistakes.append(str(error))
            return value

    entries = []
    for entry in setting:
        if isinstance(entry.value, tuple):
            value: Scalar | tuple[Scalar, ...] = tuple(convert(item) for item in entry.value)
        else:
            value = convert(entry.value)
        entries.append(Conditional(entry.filter, value))
    return tuple(entries), mistakes


def _number_or_text(value: Scalar) -> Scalar:
    if not isinstance(value, str):
        return value
    number = plain_number(value)
    return value if number is None else finite(number)


def typed(value: Scalar, parameter: ParameterWords) -> Scalar:
    """One value as its parameter's declaration wants it.

    Raises:
        SettingError: for a value of another type, out of range, or not among the choices.
    """
    if parameter.kind == "bool":
        return _truth(value)
    if parameter.kind == "choice":
        return _choice(value, list(parameter.choices or ()))
    number = _number(value)
    if parameter.kind == "int":
        if isinstance(value, bool) or number != int(number):
            raise SettingError(f"{shown(value)} is not a whole number")
        number = int(number)
    else:
        number = float(number)
    _check_range(value, number, parameter)
    return number


def _number(value: Scalar) -> float | int:
    """A number, a text that is one, or a boolean (true is 1, as in the peers)."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    number = plain_number(text)
    if number is not None:
        return finite(number)
    hint = ""
    if text.endswith("%") and (percent := plain_number(text[:-1])) is not None:
        hint = f" (percent? use {percent / 100:g})"
    elif text.count(",") == 1 and plain_number(text.replace(",", ".")) is not None:
        hint = f" (use {text.replace(',', '.')})"
    raise SettingError(f"{shown(value)} is not a number{hint}")


def _check_range(value: Scalar, number: float, parameter: ParameterWords) -> None:
    low, high = parameter.low, parameter.high
    if (low is None or number >= low) and (high is None or number <= high):
        return
    if low is not None and high is not None:
        allowed = f"{low:g} to {high:g}"
    else:
        allowed = f"{low:g} or more" if low is not None else f"at most {high:g}"
    hint = ""
    if high is not None and high <= 1 < number <= 100 and number / 100 <= high:
        hint = f" (percent? use {number / 100:g})"
    raise SettingError(f"{shown(value)} is outside the allowed range, {allowed}{hint}")


def _truth(value: Scalar) -> bool:
    word = str(value).strip().lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise SettingError(f"{shown(value)} is not true or false")


def _choice(value: Scalar, choices: list[Any]) -> Scalar:
    word = str(value).strip().lower()
    alike = next((group for group in (_YES, _NO) if word in group), {word})
    by_word = {str(choice).lower(): choice for choice in choices}
    exact: list[Scalar] = [c for w, c in by_word.items() if w == word]
    if exact:
        return exact[0]
    loose: list[Scalar] = [c for w, c in by_word.items() if w in alike]
    if loose:
        return loose[0]
    message = f"{shown(value)} is not one of {', '.join(by_word)}"
    raise SettingError(with_guess(message, word, by_word))

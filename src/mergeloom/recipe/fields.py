"""Readers of single values of a recipe. Each raises ValueError with one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from mergeloom.recipe.references import parse_reference
from mergeloom.recipe.settings import pattern_problem
from mergeloom.recipe.words import kind_of, nearest_word, shown, with_guess
from mergeloom.types import (
    ARITHMETIC_DTYPES,
    DTYPES,
    DTYPES_BY_TORCH_NAME,
    Missing,
    ModelReference,
    Renames,
    Tie,
    UnionMode,
)

UNION_MODES: tuple[str, ...] = get_args(UnionMode)
TIES: tuple[str, ...] = get_args(Tie)
MISSING: tuple[str, ...] = get_args(Missing)
LARGEST_PADDING = 65536
BUILT_IN_TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
"""The chat templates that come with the package, in ``vocabulary/templates``."""
CHAT_TEMPLATES = ("auto", *BUILT_IN_TEMPLATES)
DTYPE_NAMES: Mapping[str, str] = {
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float16": "F16",
    "fp16": "F16",
    "f16": "F16",
    "half": "F16",
    "float32": "F32",
    "fp32": "F32",
    "f32": "F32",
    "float": "F32",
    "float64": "F64",
    "fp64": "F64",
    "f64": "F64",
    "double": "F64",
}


class FieldError(ValueError):
    """A value that cannot be read; ``suffix`` is its place below the field."""

    def __init__(self, message: str, suffix: str = "") -> None:
        super().__init__(message)
        self.suffix = suffix


def text(value: Any, what: str) -> str:
    """A text that is not blank."""
    if isinstance(value, bool | int | float):
        raise FieldError(f"{shown(value)} is not text; put it in quotes if it is {what}")
    if not isinstance(value, str):
        raise FieldError(f"{what} is a text, not {kind_of(value)}")
    if not value.strip():
        raise FieldError(f"{what} is wanted, and the text is empty")
    return value


def method_name(value: Any) -> str:
    """The name of a merge method as written."""
    return text(value, "the name of a method").strip()


def document_name(value: Any) -> str | None:
    """The name of a document, which also names the folder of its result."""
    if value is None:
        return None
    name = text(value, "a name").strip()
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
        raise FieldError(f"{shown(name)} cannot name a folder; use letters, digits, '-' and '_'")
    return name


def dtype(value: Any) -> str:
    """The safetensors name of a number format, from any of its usual spellings."""
    if value in (16, 32, 64):
        raise FieldError(f"unknown dtype {value}, did you mean float{value}?")
    written = text(value, "a dtype").strip()
    word = written.lower().removeprefix("torch.")
    if word in DTYPE_NAMES:
        return DTYPE_NAMES[word]
    found = DTYPES_BY_TORCH_NAME.get(word) or DTYPES.get(word.upper())
    choices = "bfloat16, float16, float32 or float64"
    if found and found.name not in ARITHMETIC_DTYPES:
        why = "is too coarse to merge in" if found.is_float else "does not hold fractions"
        raise FieldError(f"{written} {why}; use {choices}")
    near = nearest_word(word, ("bfloat16", "float16", "float32", "float64"))
    near = near or nearest_word(word, DTYPE_NAMES)
    found_text = f"unknown dtype {shown(written)}"
    raise FieldError(f"{found_text}, {near}" if near else f"{found_text}; use {choices}")


def layer_range(value: Any) -> tuple[int, int | None]:
    """``[start, end)`` counted from 0; a missing or null end is the model's last layer."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 2:
        raise FieldError(f"two whole numbers are wanted, [start, end), not {kind_of(value)}")
    start = _layer(value[0], 0)
    end = None if len(value) == 1 or value[1] is None else _layer(value[1], 1)
    if start < 0 or (end is not None and end < 0):
        shape = f"[{start}, {end}]"
        hint = f"; write [{start}, null] to end with the last layer" if start >= 0 else ""
        raise FieldError(
            f"{shape} holds a negative number; layers count from 0 and the end is exclusive{hint}"
        )
    if end is not None and end < start:
        raise FieldError(
            f"[{start}, {end}] runs backwards; the start comes first and the end is exclusive"
        )
    return start, end


def _layer(value: Any, place: int) -> int:
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 12:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError(f"a whole number is wanted, not {kind_of(value)}", f"[{place}]")
    return value


def tokenizer_source(value: Any) -> str | ModelReference | None:
    """``union``, ``base``, or a model; the old spelling ``model:<path>`` is the model."""
    if value is None or value in ("union", "base"):
        found: str | None = value
        return found
    if isinstance(value, str) and value.startswith("model:"):
        return parse_reference(value.removeprefix("model:"))
    return parse_reference(value)


def chat_template(value: Any) -> str | ModelReference | None:
    """``auto``, a built-in name, a Jinja text, or ``{model: ...}``."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return parse_reference(value)
    written = text(value, "a chat template")
    if written.strip() in CHAT_TEMPLATES:
        return written.strip()
    if len(written) >= 20 and "{" in written:
        return written
    near = nearest_word(written, CHAT_TEMPLATES)
    if not near and "/" in written and "{" not in written:
        near = f"that of a model is chat_template: {{model: {written.strip()}}}"
    message = f"{shown(written)} is no Jinja text and not one of {', '.join(CHAT_TEMPLATES)}"
    raise FieldError(f"{message}, {near}" if near else message)


def patterns(value: Any) -> tuple[str, ...]:
    """One pattern or a list of them."""
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise FieldError(f"a pattern or a list of patterns is wanted, not {kind_of(value)}")
    for i, item in enumerate(found):
        place = "" if isinstance(value, str) else f"[{i}]"
        if not isinstance(item, str) or not item:
            raise FieldError(f"a pattern is a text, not {kind_of(item)}", place)
        problem = pattern_problem(item)
        if problem:
            raise FieldError(problem, place)
    return tuple(found)


def renames(value: Any) -> Renames:
    """A mapping from the beginning of a tensor name, or ``re:``, to what stands there instead."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise FieldError(f"a mapping from old to new names is wanted, not {kind_of(value)}")
    for old, new in value.items():
        if not isinstance(old, str) or not isinstance(new, str | None):
            what = old if not isinstance(old, str) else new
            raise FieldError(f"names are texts, not {kind_of(what)}", f".{old}")
        if problem := pattern_problem(old):
            raise FieldError(problem, f".{old}")
    return tuple((old, new or "") for old, new in value.items())


def token_source(value: Any) -> Any:
    """The raw source of a token, once it is known to be readable."""
    if isinstance(value, Mapping) and "kind" in value:
        _token_kind(value)
    elif value is not None:
        parse_reference(value)
    return value


def _token_kind(found: Mapping[str, Any]) -> None:
    kinds = {
        "zero": ("kind",),
        "model_token": ("kind", "model", "token", "token_id"),
        "mean_of_subwords": ("kind",),
    }
    kind = found["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise FieldError(_not_one_of(kind, kinds), ".kind")
    for key in found:
        if key not in kinds[kind]:
            raise FieldError(with_guess("unknown key", str(key), kinds[kind]), f".{key}")
    if kind != "model_token":
        return
    if found.get("model") is None:
        raise FieldError("kind: model_token needs the key 'model'")
    parse_reference(found["model"])
    if (found.get("token") is None) == (found.get("token_id") is None):
        raise FieldError("kind: model_token needs exactly one of 'token' and 'token_id'")
    number = found.get("token_id")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise FieldError(f"a whole number is wanted, not {kind_of(number)}", ".token_id")
    if isinstance(number, int) and number < 0:
        raise FieldError("a token id is 0 or more", ".token_id")
    if found.get("token") is not None and not isinstance(found["token"], str):
        raise FieldError("is not text; put it in quotes", ".token")


def padding(value: Any) -> int | None:
    """A multiple to which a vocabulary is rounded up: 1 to ``LARGEST_PADDING``."""
    if value is None:
        return None
    readable = isinstance(value, str) and value.isdecimal() and len(value) < 12
    number = int(value) if readable else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise FieldError(f"a whole number of at least 1 is wanted, not {kind_of(value)}")
    if number > LARGEST_PADDING:
        raise FieldError(
            f"{number} is more than {LARGEST_PADDING}; vocabularies are padded to 8, 64 or 128"
        )
    return number


def flag(value: Any) -> bool:
    """True or false, also as a text or as 0 and 1."""
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in ("true", "false", "yes", "no", "on", "off", "0", "1"):
        raise FieldError(f"true or false is wanted, not {kind_of(value)}")
    return word in ("true", "yes", "on", "1")


def union_mode(value: Any) -> str | None:
    """One of ``UNION_MODES``."""
    return _one_of(value, UNION_MODES)


def tie(value: Any) -> str | None:
    """One of ``TIES``."""
    return _one_of(value, TIES)


def missing(value: Any) -> str | None:
    """One of ``MISSING``."""
    return _one_of(value, MISSING)


def _one_of(value: Any, choices: tuple[str, ...]) -> str | None:
    if value is None or value in choices:
        found: str | None = value
        return found
    raise FieldError(_not_one_of(value, choices))


def _not_one_of(value: Any, choices: Iterable[str]) -> str:
    return with_guess(f"{shown(value)} is not one of {', '.join(choices)}", str(value), choices)

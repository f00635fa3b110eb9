"""What happens to text before a tokenizer's model sees it, and whether two tokenizers agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Settings that move offsets or add a space at the very start, and change no piece of a text.
COSMETIC = ("trim_offsets", "add_prefix_space", "prepend_scheme", "str_rep")
MODEL_KEYS = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")

Step = Mapping[str, Any]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """Why pieces of one tokenizer.json mean other text, or are never met, in the other.

    Empty when the normalizers, the pre-tokenizers and the byte fallback do the same. SentencePiece
    models are written in two ways, with Metaspace or with two normalizers; these are the same.
    """
    found = []
    for what, a, b in zip(("normalizer", "pre-tokenizer"), _steps(ours), _steps(theirs),
                          strict=True):  # fmt: skip
        if a != b:
            found.append(f"the {what} ({_describe(b)}, not {_describe(a)})")
    for key in MODEL_KEYS:
        a, b = (_model_setting(document, key) for document in (ours, theirs))
        if a != b:
            found.append(f"{key} ({json.dumps(b)}, not {json.dumps(a)})")
    return tuple(found)


def splits_words(document: Mapping[str, Any]) -> bool:
    """Whether the pre-tokenizer cuts text into words, so that its model never sees two at once."""
    return any(
        step["type"] not in ("ByteLevel", "Metaspace")
        or step.get("use_regex", step["type"] == "ByteLevel")
        or step.get("split", step["type"] == "Metaspace")
        for step in _steps(document)[1]
    )


def _model_setting(document: Mapping[str, Any], key: str) -> Any:
    return document["model"].get(key) or (False if key == "byte_fallback" else "")


def _steps(document: Mapping[str, Any]) -> tuple[list[Step], list[Step]]:
    """The steps of the normalizer and of the pre-tokenizer, one way of writing for each."""
    normalizer = _flat(document.get("normalizer"), "normalizers")
    before = _flat(document.get("pre_tokenizer"), "pretokenizers")
    kept: list[Step] = []
    for step in normalizer:
        if step["type"] == "Prepend":
            continue
        if step["type"] == "Replace" and step.get("pattern") == {"String": " "}:
            mark = {"type": "Metaspace", "replacement": step.get("content"), "split": False}
            before = [mark, *before]
            continue
        kept.append(step)
    return kept, before


def _flat(step: Any, parts: str) -> list[Step]:
    """The steps of a possibly nested sequence, without their cosmetic settings."""
    if not isinstance(step, Mapping):
        return []
    if step.get("type") == "Sequence":
        nested = step.get(parts)
        if not isinstance(nested, list):
            return []
        return [s for part in nested for s in _flat(part, parts)]
    plain = {key: value for key, value in step.items() if key not in COSMETIC}
    plain.setdefault("type", "none")
    if plain["type"] == "ByteLevel":
        plain.setdefault("use_regex", True)
    if plain["type"] == "Metaspace":
        plain.setdefault("split", True)
    return [plain]


def _describe(steps: list[Step]) -> str:
    """A few words for a message: the types, with the settings where those are short."""
    words = []
    for step in steps:
        settings = {k: v for k, v in step.items() if k != "type"}
        text = json.dumps(settings, ensure_ascii=False)
        words.append(f"{step['type']} {text}" if settings and len(text) < 60 else str(step["type"]))
    return " + ".join(words) or "none"

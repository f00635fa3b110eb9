"""Token ids in config.json and generation_config.json, for a vocabulary that changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeloom.vocabulary.tokenizer import Tokenizer

ID_KEY = re.compile(
    r".*_token_(id|ids|index)|forced_decoder_ids|bad_words_ids|force_words_ids|suppress_tokens"
    r"|begin_suppress_tokens|lang_to_id|task_to_id"
)
POSITIONED = ("forced_decoder_ids",)
"""Keys whose value is a list of [position, token id]."""
OTHER_VOCABULARIES = ("vision", "audio", "speech", "vq", "codec", "talker", "token2wav")
"""Starts of the names of scopes whose ids, if any, are not those of the text's tokenizer."""


def translated_ids(
    document: Mapping[str, Any],
    theirs: Tokenizer,
    ids: Mapping[str, int],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config with its special-token ids replaced by those the same tokens have in the output.

    Every scope is walked but those of other vocabularies. Null and negative values, which name no
    token, stay. An id that is no token of ``theirs``, or whose token the output lacks, is left
    out: of a list as one entry, else with its key.

    Args:
        document: config.json or generation_config.json.
        theirs: the tokenizer of the model that the document comes from.
        ids: token → id of the output.

    Returns:
        The new document, and a sentence for each id that was left out.
    """
    texts: dict[int, str] = {}
    for token, i in theirs.ids.items():
        texts.setdefault(i, token)
    translation = _Translation(document, theirs.label, texts, ids)
    return translation.scope(document, ""), tuple(translation.warnings)


@dataclass(frozen=True)
class _Translation:
    """One document on its way: ``texts`` are the tokens by their old ids, ``ids`` the new ids."""

    document: Mapping[str, Any]
    label: str
    texts: Mapping[int, str]
    ids: Mapping[str, int]
    warnings: list[str] = field(default_factory=list)

    def scope(self, scope: Mapping[str, Any], path: str) -> dict[str, Any]:
        """A mapping of the document with the ids in it translated."""
        made: dict[str, Any] = {}
        for key, value in scope.items():
            here = f"{path}{key}"
            if ID_KEY.fullmatch(key) and value is not None and value != []:
                new = self._value(value, here, positioned=key in POSITIONED)
                if new is not None:
                    made[key] = new
            elif isinstance(value, Mapping) and not _is_other(key, value, self.document):
                made[key] = self.scope(value, f"{here}.")
            else:
                made[key] = value
        return made

    def _value(self, value: Any, path: str, *, positioned: bool = False) -> Any:
        """The value of an id key, translated; None in place of what is left out."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return self._id(value, path)
        if isinstance(value, Mapping):
            made = {key: self._value(part, path) for key, part in value.items()}
            return {key: part for key, part in made.items() if part is not None}
        if not isinstance(value, list):
            return value
        if positioned and len(value) == 2 and isinstance(value[0], int):
            last = self._value(value[1], path)
            return [value[0], last] if last is not None or value[1] is None else None
        made_list = [self._value(part, path, positioned=positioned) for part in value]
        if any(isinstance(part, int) for part in value) and path.endswith("bad_words_ids"):
            # A forbidden sequence means nothing without one of its tokens.
            return None if None in made_list else made_list
        return [part for part in made_list if part is not None] or None

    def _id(self, value: int, path: str) -> int | None:
        token = self.texts.get(value)
        if token is not None and token in self.ids:
            return self.ids[token]
        what = (
            f"{value} is no token of {self.label}"
            if token is None
            else f"{value} is {token!r}, which the output's vocabulary has not"
        )
        self.warnings.append(f"{path}: {what}; it is left out")
        return None


def _is_other(key: str, scope: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether a part of a config has a vocabulary that is not the text's."""
    if key.startswith(OTHER_VOCABULARIES):
        return True
    text = document.get("text_config")
    main = document.get("vocab_size")
    if main is None and isinstance(text, Mapping):
        main = text.get("vocab_size")
    return main is not None and scope.get("vocab_size", main) != main

"""The tokenizer files of an output whose vocabulary is not that of the donor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.vocabulary.tokenizer import AddedToken, Tokenizer
from mergeloom.vocabulary.union import OutputVocabulary

LISTS = ("additional_special_tokens", "extra_special_tokens")


def tokenizer_files(
    output: OutputVocabulary, tokenizers: Sequence[Tokenizer]
) -> tuple[dict[str, bytes], frozenset[str]]:
    """The tokenizer files to write, by name, and the donor's that must not be copied beside them.

    Both are empty if the donor's files are right as they are. Otherwise ``tokenizer.json`` and a
    ``tokenizer_config.json`` that agrees with it are written, and ``special_tokens_map.json`` and
    ``added_tokens.json`` where the donor has them. Stale are its other files that hold a
    vocabulary, such as ``tokenizer.model``.
    """
    if output.document is None:
        return {}, frozenset()
    donor = tokenizers[output.source]
    made = {
        "tokenizer.json": json.dumps(output.document, ensure_ascii=False).encode(),
        "tokenizer_config.json": _json(_config(donor, output)),
    }
    if "special_tokens_map.json" in donor.files:
        made["special_tokens_map.json"] = _json(_without(donor.special_tokens_map, output.dropped))
    if "added_tokens.json" in donor.files:
        made["added_tokens.json"] = _json({token.content: token.id for token in output.added})
    return made, frozenset(donor.others)


def _config(donor: Tokenizer, output: OutputVocabulary) -> dict[str, Any]:
    """tokenizer_config.json with the output's added tokens."""
    made = _without(donor.config, output.dropped)
    if "added_tokens_decoder" in made:
        made["added_tokens_decoder"] = {str(token.id): _flags(token) for token in output.added}
    # A class of the model's own would build its tokenizer from files that are no longer there.
    is_code = isinstance(made.pop("auto_map", None), Mapping)
    made.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if is_code or (output.document or {})["model"].get("ignore_merges"):
        # Some classes of transformers 5 build a tokenizer anew and would lose this setting.
        if made["tokenizer_class"] != "PreTrainedTokenizerFast":
            made.setdefault("model_input_names", ["input_ids", "attention_mask"])
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    return made


def _flags(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content, **token.flags}


def _without(config: Mapping[str, Any], dropped: Sequence[str]) -> dict[str, Any]:
    """Special tokens by name, without those that are gone: loading would add them again."""
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key in LISTS and isinstance(value, list):
            made[key] = [token for token in value if _content(token) not in dropped]
        elif key in LISTS and isinstance(value, Mapping):
            made[key] = {k: token for k, token in value.items() if _content(token) not in dropped}
        elif not (key.endswith("_token") and _content(value) in dropped):
            made[key] = value
    return made


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()

"""A stranger's tokenizer.json with anything at any place is read or refused, never a traceback."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import added, document, read

from mergeloom.errors import MergeloomError
from mergeloom.vocabulary.files import tokenizer_files
from mergeloom.vocabulary.special import translated_ids
from mergeloom.vocabulary.union import output_vocabulary

JUNK = [None, True, 7, -1, 1e9, "x", "", [], {}, [[]], {"type": "Sequence"}, ["a"], {"a": 1}, "Ġ"]
AROUND = {
    "post_processor": {
        "type": "TemplateProcessing", "single": [], "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}},
    },
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "split": False},
    "padding": {"pad_token": "<s>"},
}  # fmt: skip
MARK = [added("<s>", 4, "special")]
MORE = [added("<t>", 9, "special")]
PAIRS = {
    "BPE": (
        document({"a": 0, "b": 1, "ab": 2, "<u>": 3}, MARK, "BPE", merges=[["a", "b"]]) | AROUND,
        document({"b": 0, "c": 7, "bc": 8}, MORE, "BPE", merges=[["b", "c"]]) | AROUND,
    ),
    "Unigram": (
        document([["?", 0.0], ["a", -1.0], ["b", -2.0], ["ab", -2.5]], MARK, "Unigram", unk_id=0),
        document([["?", 0.0], ["c", -3.0], ["bc", -3.5]], MORE, "Unigram", unk_id=0),
    ),
    "WordPiece": (
        document({"a": 0, "b": 1, "ab": 2}, MARK, "WordPiece"),
        document({"a": 0, "c": 7}, MORE, "WordPiece"),
    ),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, part in inner:
        yield from places(part, (*path, key))


def with_junk(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    made = copy.deepcopy(value)
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    return made


@given(st.data())
@settings(max_examples=300)
def test_junk_is_read_or_refused(data):
    pair = list(PAIRS[data.draw(st.sampled_from(sorted(PAIRS)))])
    which = data.draw(st.sampled_from([0, 1]))
    path = data.draw(st.sampled_from(list(places(pair[which]))))
    junk = data.draw(st.sampled_from(JUNK))
    pair[which] = with_junk(pair[which], path, junk)
    config = {"added_tokens_decoder": junk, "extra_special_tokens": junk, "pad_token": junk}
    source = data.draw(st.sampled_from(["union", which]))
    mode = data.draw(st.sampled_from(["merge", "vocab_only"]))
    with contextlib.suppress(MergeloomError):
        inputs = [read("A", pair[0], tokenizer_config_json=config), read("B", pair[1])]
        output = output_vocabulary(inputs, [3, 20], source, tokens={"<n>": {}}, union_mode=mode)
        tokenizer_files(output, inputs)
        ids = {"eos_token_id": junk, "bad_words_ids": junk, "forced_decoder_ids": [junk]}
        translated_ids({**ids, "text_config": junk, "vocab_size": junk}, inputs[0], output.ids)

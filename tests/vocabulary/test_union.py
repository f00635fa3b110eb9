"""Which tokens the output has, at which ids, and whether the library agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tokenizers import added, document, load, naive_ids, read, trained

from mergeloom.errors import CheckpointError, RecipeError
from mergeloom.vocabulary.tokenizer import FLAGS
from mergeloom.vocabulary.union import output_vocabulary

WORDS = [*"abcdefgh", "<x>", "<y>", "<z>", "long"]


@st.composite
def vocabularies(draw):
    """A WordLevel or WordPiece vocabulary with holes, and added tokens inside or beside it."""
    kind = draw(st.shared(st.sampled_from(["WordLevel", "WordPiece"]), key="kind"))
    words = draw(st.lists(st.sampled_from(WORDS), unique=True, min_size=1))
    numbers = draw(
        st.lists(st.integers(0, 30), unique=True, min_size=len(words), max_size=len(words))
    )
    vocab = dict(zip(words, numbers, strict=True))
    marks, free = [], [n for n in range(40) if n not in numbers]
    for word in draw(st.lists(st.sampled_from(WORDS), unique=True, max_size=4)):
        flags = draw(st.lists(st.sampled_from(FLAGS), unique=True))
        marks.append(added(word, vocab[word] if word in vocab else free.pop(0), *flags))
    return document(vocab, marks, kind)


@st.composite
def cases(draw):
    inputs = draw(st.lists(vocabularies(), min_size=1, max_size=4))
    rows = [draw(st.integers(1, 40)) for _ in inputs]
    source = draw(st.sampled_from(["union", *range(len(inputs))]))
    tokens = draw(st.lists(st.sampled_from([*WORDS, "<new>"]), unique=True, max_size=3))
    mode = draw(st.sampled_from(["merge", "added_only", "vocab_only"]))
    return inputs, rows, source, tokens, mode


@given(cases())
def test_ids_are_those_of_the_plain_rules_and_of_the_library(case):
    inputs, rows, source, tokens, mode = case
    tokenizers = [read(f"M{i}", parsed) for i, parsed in enumerate(inputs)]
    found = output_vocabulary(
        tokenizers, rows, source, tokens={t: {} for t in tokens}, union_mode=mode
    )
    expected = naive_ids(inputs, rows, source, tokens, regular=mode != "added_only")
    assert dict(found.ids) == expected
    assert list(found.ids.values()) == sorted(found.ids.values())
    own = tokenizers[found.source].ids
    assert [t for t, _ in found.appended] == [t for t in found.ids if t not in own]
    for token, donor in found.appended:
        assert token in tokens if donor == -1 else token in tokenizers[donor].ids
    if found.document is None:
        assert expected == dict(own)
    else:
        assert load(found.document).get_vocab() == expected


BASE = document({"a": 0, "b": 1, "<x>": 2}, [added("<x>", 2, "special")])


def test_the_first_definition_of_an_added_token_wins_and_the_others_are_told():
    other = document({"a": 0}, [added("<x>", 1, "lstrip"), added("<y>", 2, "special")])
    third = document({"a": 0}, [added("<y>", 1, "special", "rstrip"), added("b", 2, "special")])
    found = output_vocabulary(
        [read("A", BASE), read("B", other), read("C", third)], [9, 9, 9], "union"
    )
    assert list(found.ids.items()) == [("a", 0), ("b", 1), ("<x>", 2), ("<y>", 3)]
    flags = {t.content: [f for f, on in t.flags.items() if on] for t in found.added}
    assert flags == {"<x>": ["special"], "<y>": ["special"], "b": ["special"]}
    assert [str(c) for c in found.conflicts] == [
        "<x>: as in A (special: true, not false; lstrip: false, not true as in B)",
        "<y>: as in B (rstrip: false, not true as in C)",
        "b: as in C (special token, not regular as in A)",
    ]


def test_listed_tokens_are_added_tokens_with_the_flags_a_model_has_for_them():
    other = document({"a": 0}, [added("<y>", 1, "special", "rstrip")])
    found = output_vocabulary(
        [read("A", BASE), read("B", other)], [9, 9], 0,
        tokens={"<y>": {"special": False}, "<new>": {"special": True}, "b": {}, "plain": {}},
    )  # fmt: skip
    assert found.appended == (("<y>", -1), ("<new>", -1), ("plain", -1))
    flags = {t.content: [f for f, on in t.flags.items() if on] for t in found.added}
    assert flags == {
        "<x>": ["special"], "<y>": ["special", "rstrip"], "<new>": ["special"], "plain": [],
    }  # fmt: skip


def test_nothing_is_written_when_nothing_changes():
    other = document({"b": 0})
    for source, inputs in ((0, [BASE, other]), (1, [BASE, other]), ("union", [BASE, BASE])):
        tokenizers = [read(f"M{i}", parsed) for i, parsed in enumerate(inputs)]
        found = output_vocabulary(tokenizers, [3, 3], source)
        assert (found.document, found.appended, found.warnings) == (None, (), ())


def test_tokens_beyond_every_models_rows_go_with_a_warning():
    marks = [added(f"<{i}>", 2 + i, "special") for i in range(4)]
    parsed = document({"a": 0, "b": 1}, marks)
    parsed["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 5, "pad_type_id": 0, "pad_token": "<3>",
    }  # fmt: skip
    found = output_vocabulary([read("A", parsed)], [3], 0, tokens={"<2>": {}})
    assert dict(found.ids) == {"a": 0, "b": 1, "<0>": 2, "<2>": 4}
    assert found.dropped == ("<1>", "<3>")
    assert found.document["padding"] is None
    assert found.warnings == (
        "A: left out of the tokenizer, because no model has an embedding row for them: 2 tokens "
        "(<1>, <3>)",
    )


def test_tokens_the_tokenizer_needs_stay_even_without_rows():
    parsed = document({"a": 0, "b": 1, "<unk>": 5}, unk_token="<unk>")
    found = output_vocabulary([read("A", parsed)], [2], 0)
    assert found.document is None
    assert found.warnings == (
        "A: kept, because its tokenizer needs them, although no model has an embedding row for "
        "them: 1 token (<unk>)",
    )


def test_dropping_takes_the_merge_rules_along():
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 9}
    for merges in ([["a", "b"], ["ab", "c"]], ["a b", "ab c"]):
        parsed = document(vocab, kind="BPE", merges=merges)
        found = output_vocabulary([read("A", parsed)], [5], 0)
        assert found.document["model"]["merges"] == merges[:1]
        assert load(found.document).encode("abc").tokens == ["ab", "c"]


def test_a_merge_rule_that_is_no_pair_is_told():
    base = document({"a": 0}, kind="BPE", merges=[])
    for rule in ("a b c", ["a"], [["a"], "b"], 7, None):
        other = document({"a": 0, "b": 1}, kind="BPE", merges=[rule])
        with pytest.raises(CheckpointError, match="merge rule that is no pair"):
            output_vocabulary([read("A", base), read("B", other)], [9, 9], "union")


def unigram(*pieces, more=()):
    scored = [[piece, -float(i)] for i, piece in enumerate(pieces)]
    return document(scored, list(more), "Unigram", unk_id=0)


def test_a_list_of_pieces_keeps_what_stands_before_a_usable_one():
    base = unigram("?", "a", "b", "c", "d")
    found = output_vocabulary(
        [read("A", base), read("B", unigram("?", "c"))], [2, 2], 0
    )  # c is usable in B, at another id
    assert dict(found.ids) == {"?": 0, "a": 1, "b": 2, "c": 3}
    assert load(found.document).get_vocab() == dict(found.ids)
    assert len(found.warnings) == 2


def test_pieces_follow_the_added_tokens_of_a_list():
    base = unigram("?", "a", more=[added("<x>", 2, "special")])
    other = unigram("?", "b", "a", more=[added("<y>", 3)])
    found = output_vocabulary([read("A", base), read("B", other)], [3, 4], "union")
    assert dict(found.ids) == {"?": 0, "a": 1, "<x>": 2, "b": 3, "<y>": 4}
    made = load(found.document)
    assert made.get_vocab() == dict(found.ids)
    assert made.encode("a<x>b<y>").ids == [1, 2, 3, 4]


def test_kinds_that_cannot_be_united_are_all_told():
    tokenizers = [read("A", BASE), read("B", document({"z": 0}, kind="BPE", merges=[])),
                  read("C", unigram("?", "y"))]  # fmt: skip
    for mode in ("merge", "vocab_only"):
        with pytest.raises(RecipeError) as error:
            output_vocabulary(tokenizers, [9, 9, 9], "union", union_mode=mode)
        hint = ("Write tokenizer: {source: union, union_mode: added_only} to take its added "
                "tokens only, or choose one model's tokenizer with source.")  # fmt: skip
        assert [str(p) for p in error.value.problems] == [
            "tokenizer: 1 token (z) of B cannot come into the tokenizer of A: one is a BPE "
            f"tokenizer, the other WordLevel. {hint}",
            "tokenizer: 2 tokens (?, y) of C cannot come into the tokenizer of A: one is a Unigram "
            f"tokenizer, the other WordLevel. {hint}",
        ]
    assert not output_vocabulary(tokenizers, [9, 9, 9], "union", union_mode="added_only").appended


def test_kinds_may_differ_when_there_are_only_added_tokens_to_take():
    other = document({"a": 0}, [added("<y>", 1)], "BPE", merges=[])
    found = output_vocabulary([read("A", BASE), read("B", other)], [9, 9], "union")
    assert found.appended == (("<y>", 1),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "NFC"}}, "the normalizer (NFC, not none)"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
         'the pre-tokenizer (Digits {"individual_digits": true}, not WhitespaceSplit)'),
        ({"byte_fallback": True}, "byte_fallback (true, not false)"),
    ],
)  # fmt: skip
def test_other_preparation_of_text_leaves_regular_tokens_out(change, reason):
    base = document({"a": 0}, kind="BPE", merges=[])
    other = document({"a": 0, "b": 1}, [added("<y>", 2)], kind="BPE", merges=[])
    for key, value in change.items():
        (other if key in other else other["model"])[key] = value
    tokenizers = [read("A", base), read("B", other)]
    found = output_vocabulary(tokenizers, [9, 9], "union")
    assert dict(found.ids) == {"a": 0, "<y>": 1}
    assert found.warnings == (
        f"B and A prepare text differently: {reason}; only the added tokens of B are taken, not 1 "
        "token (b)",
    )
    rows_only = output_vocabulary(tokenizers, [9, 9], "union", union_mode="vocab_only")
    assert dict(rows_only.ids) == {"a": 0, "b": 1, "<y>": 2}


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
TWO_STEPS = [{"type": "Prepend", "prepend": "▁"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]  # fmt: skip


def test_the_two_ways_of_writing_sentencepiece_are_one():
    base = document({"a": 0}, kind="BPE", merges=[]) | {"pre_tokenizer": METASPACE}
    other = document({"a": 0, "▁": 1, "▁a": 2}, kind="BPE", merges=[["▁", "a"]]) | {
        "normalizer": {"type": "Sequence", "normalizers": TWO_STEPS}, "pre_tokenizer": None,
    }  # fmt: skip
    found = output_vocabulary([read("A", base), read("B", other)], [9, 9], "union")
    assert load(found.document).encode("a a").tokens == ["▁a", "▁a"]


def test_the_same_bytes_for_every_hash_seed():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hashlib, json\n"
        "from made_tokenizers import load, read, trained\n"
        "from mergeloom.vocabulary.union import output_vocabulary\n"
        "from mergeloom.vocabulary.files import tokenizer_files\n"
        "inputs = [read(n, json.loads(t)) for n, t in zip('AB', json.load(sys.stdin))]\n"
        "found = output_vocabulary(inputs, [10**6] * 2, 'union', tokens={'<t>': {}})\n"
        "files, stale = tokenizer_files(found, inputs)\n"
        "print(hashlib.sha256(b''.join(files.values())).hexdigest())\n"
    )
    inputs = json.dumps([trained("BPE", "prose", 600), trained("BPE", "code", 600)])
    seen = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)], input=inputs, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
        )  # fmt: skip
        seen.add(done.stdout)
    assert len(seen) == 1

"""Reading tokenizers: lazily, in every form, and with a clear word for every damaged file."""

from __future__ import annotations

import contextlib
import importlib.util
import json

import pytest
from made_tokenizers import added, checkpoint, corpus, document, read

from mergeloom.errors import CheckpointError
from mergeloom.vocabulary.tokenizer import read_tokenizer


def test_a_folder_without_tokenizer_files_has_none():
    assert read_tokenizer(checkpoint("A", config_json={}, tokenizer_config_json={})) is None


def test_equal_files_are_never_parsed():
    one, two = (read(label, b"{ not JSON") for label in "AB")
    assert one.conflicts(two) == 0


def test_ids_ascend_and_hold_the_added_tokens():
    tokenizer = read("A", document({"b": 7, "a": 3}, [added("<x>", 5, "special", "lstrip")]))
    assert list(tokenizer.ids.items()) == [("a", 3), ("<x>", 5), ("b", 7)]
    assert [(t.content, t.id, t.special, t.lstrip, t.rstrip) for t in tokenizer.added] == [
        ("<x>", 5, True, True, False)
    ]
    other = read("B", document({"a": 3, "c": 7, "d": 8}))
    assert (tokenizer.conflicts(other), tokenizer.shared(other)) == (1, 1)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"vocab": {}, "merges": []}, "BPE"),
        ({"vocab": [["a", 0.0]]}, "Unigram"),
        ({"vocab": {}, "max_input_chars_per_word": 100}, "WordPiece"),
        ({"vocab": {}}, "WordLevel"),
        ({"vocab": {}, "type": "WordLevel"}, "WordLevel"),
    ],
)
def test_the_kind_is_found_also_where_old_files_do_not_say_it(model, kind):
    assert read("A", {"model": model}).kind == kind


NONE = "has no vocabulary of tokens and ids where a tokenizer.json has one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON: Expecting property name enclosed in double quotes"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is nested too deeply to be read"),
        (b"[]", NONE),
        (b'{"model": []}', NONE),
        (b'{"model": {"vocab": {"a": "1"}}}', NONE),
        (b'{"model": {"vocab": {"a": -1}}}', NONE),
        (b'{"model": {"vocab": {"a": true}}}', NONE),
        (b'{"model": {"vocab": {"a": 1e99}}}', NONE),
        (b'{"model": {"vocab": [[1, 0]]}}', NONE),
        (b'{"model": {"vocab": [[]]}}', NONE),
        (b'{"model": {"vocab": [["a", "b"]]}}', NONE),
        (b'{"model": {"vocab": {"\\ud83d": 0}}}', NONE),
        (b'{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}', NONE),
        (b'{"model": {"vocab": {}}, "added_tokens": 7}', NONE),
    ],
)
def test_damaged_files_are_named(content, message):
    with pytest.raises(CheckpointError) as error:
        read("A", content).ids  # noqa: B018
    assert error.value.problems[0].where == "models/A/tokenizer.json"
    assert error.value.problems[0].message.startswith(message)


def test_without_transformers_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one = read_tokenizer(checkpoint("A", **{"tokenizer.model": b"x"}))
    same = read_tokenizer(checkpoint("B", **{"tokenizer.model": b"x"}))
    assert one.conflicts(same) == 0  # equal files need no reading
    with pytest.raises(CheckpointError) as error:
        list(one.ids)
    assert str(error.value) == (
        "A: has no tokenizer.json, and transformers is needed to read tokenizer.model. "
        "Install it with: pip install 'mergeloom[transformers]'"
    )


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    import sentencepiece

    prefix = tmp_path_factory.mktemp("spm") / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus("prose").splitlines()[:600]), model_prefix=str(prefix),
        vocab_size=400, model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model").read_bytes()


def test_other_files_are_converted_by_transformers(sentencepiece_model):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]
    bert = read_tokenizer(
        checkpoint("B", **{"vocab.txt": "\n".join(words).encode()},
                   config_json={"model_type": "bert"})
    )  # fmt: skip
    assert bert.kind == "WordPiece"
    assert dict(bert.ids) == {word: i for i, word in enumerate(words)}
    llama = read_tokenizer(
        checkpoint("L", **{"tokenizer.model": sentencepiece_model},
                   tokenizer_config_json={"tokenizer_class": "LlamaTokenizer"})
    )  # fmt: skip
    assert llama.kind == "BPE"
    assert [llama.ids[t] for t in ("<unk>", "<s>", "</s>", "<0x00>", "▁the")][:4] == [0, 1, 2, 3]
    assert llama.document["model"]["byte_fallback"]
    assert llama.others == ("tokenizer.model",)
    gpt = read_tokenizer(
        checkpoint("G", **{"vocab.json": json.dumps({"a": 0, "b": 1, "ab": 2}).encode(),
                           "merges.txt": b"#version: 0.2\na b\n"},
                   config_json={"model_type": "gpt2"})
    )  # fmt: skip
    assert gpt.document["model"]["merges"] in ([["a", "b"]], ["a b"])


def test_a_bert_from_before_configs_named_their_kind():
    """As rxnfp: one fine-tune has a model_type and a map of special tokens, the others do not."""
    words = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nC\n##l\n"
    old = read_tokenizer(checkpoint("O", **{"vocab.txt": words}, config_json={"vocab_size": 7}))
    new = read_tokenizer(
        checkpoint("N", **{"vocab.txt": words}, config_json={"model_type": "bert"},
                   special_tokens_map_json={"mask_token": "[MASK]"}, tokenizer_config_json={})
    )  # fmt: skip
    assert old.digest != new.digest
    assert old.kind == new.kind == "WordPiece"
    assert old.ids == new.ids
    assert old.ids["##l"] == 6


def test_code_beside_a_tokenizer_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    evil = read_tokenizer(
        checkpoint(
            "E", **{"vocab.txt": b"[UNK]\na\n", "evil.py": f"open({str(mark)!r}, 'w')".encode()},
            tokenizer_config_json={"auto_map": {"AutoTokenizer": ["evil.Evil", None]},
                                   "tokenizer_class": "Evil"},
        )
    )  # fmt: skip
    with contextlib.suppress(CheckpointError):
        evil.ids  # noqa: B018
    assert not mark.exists()


def test_files_transformers_cannot_read_are_told():
    broken = read_tokenizer(
        checkpoint("X", **{"tokenizer.model": b"not a model"},
                   tokenizer_config_json={"tokenizer_class": "LlamaTokenizer"})
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"X: transformers cannot read its tokenizer "
                       r"\(tokenizer.model\): .*which writes a tokenizer.json"):  # fmt: skip
        broken.ids  # noqa: B018

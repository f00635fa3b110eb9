"""The tokenizer files that are written, as the library and transformers load them."""

from __future__ import annotations

import json
import warnings

import pytest
from made_tokenizers import TEXTS, added, document, load, read, trained

from mergeloom.vocabulary.files import tokenizer_files
from mergeloom.vocabulary.union import output_vocabulary

BASE = document({"a": 0, "b": 1}, [added("<s>", 2, "special"), added("<pad>", 9, "special")])
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "pad_token": {"content": "<pad>", "special": True},
    "additional_special_tokens": ["<s>", "<pad>"],
    "added_tokens_decoder": {"2": {"content": "<s>"}, "9": {"content": "<pad>"}},
    "model_max_length": 77,
}


def test_nothing_is_written_for_the_donors_own_vocabulary():
    tokenizer = read("A", BASE, **{"tokenizer.model": b"x"})
    assert tokenizer_files(output_vocabulary([tokenizer], [10], 0), [tokenizer]) == (
        {}, frozenset(),
    )  # fmt: skip


def test_every_file_agrees_with_the_new_vocabulary():
    tokenizer = read(
        "A", BASE, tokenizer_config_json=CONFIG, special_tokens_map_json={"pad_token": "<pad>"},
        added_tokens_json={"<pad>": 9}, **{"tokenizer.model": b"x", "vocab.json": b"{}"},
    )  # fmt: skip
    output = output_vocabulary([tokenizer], [5], 0, tokens={"<t>": {"special": True}})
    files, stale = tokenizer_files(output, [tokenizer])
    read_back = {name: json.loads(content) for name, content in files.items()}
    assert stale == {"tokenizer.model", "vocab.json"}
    assert load(read_back["tokenizer.json"]).get_vocab() == {"a": 0, "b": 1, "<s>": 2, "<t>": 3}
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False,
             "single_word": False}  # fmt: skip
    assert read_back["tokenizer_config.json"] == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "additional_special_tokens": ["<s>"],
        "added_tokens_decoder": {
            "2": {"content": "<s>", **flags}, "3": {"content": "<t>", **flags},
        },
        "model_max_length": 77,
    }  # fmt: skip
    assert read_back["special_tokens_map.json"] == {}
    assert read_back["added_tokens.json"] == {"<s>": 2, "<t>": 3}


def test_code_that_would_build_the_old_vocabulary_is_not_named():
    config = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["q.Q", None]}}
    tokenizer = read("A", BASE, tokenizer_config_json=config)
    output = output_vocabulary([tokenizer], [10], 0, tokens={"<t>": {}})
    made = json.loads(tokenizer_files(output, [tokenizer])[0]["tokenizer_config.json"])
    assert made == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }


CLASSES = {"BPE": "GPT2Tokenizer", "SentencePiece": "LlamaTokenizer"}


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_gives_the_same_ids(kind, tmp_path):
    inputs = []
    for name in ("prose", "code"):
        parsed = json.loads(trained(kind, name))
        count = len(parsed["model"]["vocab"])
        for i, mark in enumerate((f"<|{name}|>", "<|im_end|>")):
            parsed["added_tokens"].append(added(mark, count + i, "special"))
        own = {"BPE": {}, "SentencePiece": {"bos_token": "<s>", "eos_token": "</s>"}}[kind]
        config = {"tokenizer_class": CLASSES[kind], **own}
        inputs.append(read(name, parsed, tokenizer_config_json=config))
    output = output_vocabulary(inputs, [10**6] * 2, "union", tokens={"<new>": {}})
    for name, content in tokenizer_files(output, inputs)[0].items():
        (tmp_path / name).write_bytes(content)
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load(output.document)
    assert theirs.get_vocab() == dict(output.ids)
    for text in (*TEXTS, "<|code|>x<|im_end|>\n<|prose|> y<new>"):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)
    ids = ours.encode("x<|im_end|>", add_special_tokens=False).ids
    assert theirs.decode(ids, skip_special_tokens=True).strip() == "x"

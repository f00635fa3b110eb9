"""Small tokenizers for tests, and the plainest possible statement of what a union's ids are."""

from __future__ import annotations

import json
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mergeloom.types import Checkpoint
from mergeloom.vocabulary.tokenizer import FLAGS, Tokenizer, read_tokenizer

STDLIB = Path(sysconfig.get_paths()["stdlib"])
SPECIAL = ("<unk>", "<s>", "</s>")
TEXTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it?\n\n",
    "def gruß(name: str) -> None:\n\tprint(f'hällo {name}!')  # 12345\n",
    "Съешь ещё этих мягких французских булок. 敏捷的棕色狐狸跳过了懒狗。",
    "素早い茶色の狐 👩‍👩‍👧‍👦🏳️‍🌈 الثعلب البني السريع  e\u0301 ﬁ  ",
    " leading, trailing   and\r\nmixed\twhite space \u00a0 ",
)


def checkpoint(label: str, **texts: Any) -> Checkpoint:
    """A model without weights. ``tokenizer_json={...}`` is its tokenizer.json."""
    files = {
        name.replace("_json", ".json"): c if isinstance(c, bytes) else json.dumps(c).encode()
        for name, c in texts.items()
    }
    return Checkpoint(label, Path("models") / label, {}, texts=files)


def read(label: str, document: Any, **more: Any) -> Tokenizer:
    found = read_tokenizer(checkpoint(label, tokenizer_json=document, **more))
    assert found is not None
    return found


def added(content: str, number: int, *flags: str) -> dict[str, Any]:
    return {"id": number, "content": content, **{name: name in flags for name in FLAGS}}


def document(
    vocab: Any, more: list[dict[str, Any]] | None = None, kind: str = "WordLevel", **model: Any
) -> dict[str, Any]:
    """A tokenizer.json that splits at white space."""
    if kind in ("WordLevel", "WordPiece"):
        model.setdefault("unk_token", next(iter(vocab), "?"))
    if kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": more or [],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": kind, "vocab": vocab, **model},
    }  # fmt: skip


def load(document: Any) -> library.Tokenizer:
    return library.Tokenizer.from_str(json.dumps(document))


@cache
def corpus(name: str) -> str:
    """``code``: modules of the standard library; ``prose``: its documentation."""
    path = {"prose": "pydoc_data/topics.py", "code": "tarfile.py"}[name]
    return (STDLIB / path).read_text("utf-8")[:80_000]


@cache
def trained(kind: str, name: str, size: int = 1200) -> str:
    """A real tokenizer.json of one kind, trained on one corpus."""
    made: Any
    if kind == "BPE":  # as GPT-2
        made = library.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "SentencePiece":  # as Llama 2
        made = library.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
        trainer = trainers.BpeTrainer(
            vocab_size=size, show_progress=False,
            special_tokens=[*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))],
        )  # fmt: skip
    elif kind == "Unigram":  # as T5
        made = library.Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, show_progress=False, special_tokens=list(SPECIAL), unk_token="<unk>"
        )
    else:  # as BERT
        made = library.Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, show_progress=False, special_tokens=list(SPECIAL)
        )
    made.train_from_iterator(corpus(name).split("\n\n"), trainer)
    result = json.loads(made.to_str())
    if kind == "SentencePiece":
        # As SentencePiece sees it: the whole text is one word, any two pieces that make one join.
        result["pre_tokenizer"]["split"] = False
        result["added_tokens"] = result["added_tokens"][: len(SPECIAL)]
        vocab = result["model"]["vocab"]
        splits = [(p[:i], p[i:]) for p in vocab for i in range(1, len(p))]
        result["model"]["merges"] = [[a, b] for a, b in splits if a in vocab and b in vocab]
    return json.dumps(result)


def naive_ids(
    inputs: list[Any], rows: list[int], source: int | str, tokens: list[str], *, regular: bool
) -> dict[str, int]:
    """The output's token → id from tokenizer.json files, by the rules of docs/vocabularies.md."""
    every = []
    for parsed in inputs:  # (token → id, token → id of the added ones)
        marks = {t["content"]: t["id"] for t in parsed["added_tokens"]}
        every.append(({**parsed["model"]["vocab"], **marks}, marks))
    index = 0 if source == "union" else int(source)
    result = {}
    for token, number in every[index][0].items():
        holders = [ids for (ids, _), n in zip(every, rows, strict=True) if ids.get(token, n) < n]
        unknown = inputs[index]["model"].get("unk_token")
        if holders or token in tokens or token == unknown:
            result[token] = number

    def append(token: str) -> None:
        if token not in result:
            result[token] = max(result.values(), default=-1) + 1

    if source == "union":
        for wants_marks in ([False] if regular else []) + [True]:
            for (ids, marks), count in zip(every, rows, strict=True):
                for token, number in sorted(ids.items(), key=lambda e: (e[1], e[0])):
                    if number < count and (token in marks) is wants_marks:
                        append(token)
    for token in tokens:
        append(token)
    return result

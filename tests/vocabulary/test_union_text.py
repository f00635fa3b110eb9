"""What a united tokenizer does with text: trained tokenizers of every kind, real prose and code."""

from __future__ import annotations

import json

import pytest
from made_tokenizers import SPECIAL, TEXTS, corpus, load, read, trained

from mergeloom.vocabulary.union import output_vocabulary

BIG = [10**6] * 2
KINDS = ("BPE", "SentencePiece", "Unigram", "WordPiece")


def united(kind, mode="merge"):
    base, donor = (json.loads(trained(kind, name)) for name in ("prose", "code"))
    found = output_vocabulary(
        [read("prose", base), read("code", donor)], BIG, "union",
        tokens={"<|im_start|>": {"special": True}}, union_mode=mode,
    )  # fmt: skip
    return load(base), load(donor), load(found.document), found


def tokens_of(machine, text):
    return machine.encode(text, add_special_tokens=False).tokens


def pieces_of(machine):
    """Pieces that a tokenizer makes of their own text alone, with the text."""
    result = {}
    for piece, number in sorted(machine.get_vocab().items(), key=lambda e: e[1]):
        text = machine.decode([number])
        if piece.startswith(("▁", "Ġ")) and not text.startswith(" "):
            text = " " + text
        if piece not in SPECIAL and tokens_of(machine, text) == [piece]:
            result[piece] = text
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_both_stay_reachable(kind):
    base, donor, made, found = united(kind)
    assert made.get_vocab() == dict(found.ids)
    # SentencePiece cuts no words, so whole words are not looked up; in so small a vocabulary many
    # a donor's piece has no two parts that are pieces. Of Llama 2 and Baichuan 99.8 % are reached.
    for machine, least in ((base, 1.0), (donor, 0.85 if kind == "SentencePiece" else 0.99)):
        texts = pieces_of(machine)
        assert len(texts) > 300
        assert sum(tokens_of(made, t) == [p] for p, t in texts.items()) >= least * len(texts)


@pytest.mark.parametrize("mode", ["merge", "vocab_only", "added_only"])
@pytest.mark.parametrize("kind", ["BPE", "SentencePiece"])
def test_every_text_comes_back(kind, mode):
    base, _, made, _ = united(kind, mode)
    whole = 0
    for text in (*TEXTS, corpus("code")[:20_000], corpus("prose")[:20_000]):
        if base.decode(base.encode(text, add_special_tokens=False).ids) == text:
            whole += 1
            assert made.decode(made.encode(text, add_special_tokens=False).ids) == text
    assert whole >= 5  # SentencePiece itself loses a space at the start


@pytest.mark.parametrize("kind", ["BPE", "SentencePiece", "Unigram"])
def test_what_union_does_to_text(kind):
    base, donor, made, _ = united(kind)
    code, words = corpus("code")[:40_000], corpus("prose")[:40_000].split()
    lengths = {m: len(m.encode(code).ids) for m in (base, donor, made)}
    assert lengths[made] < lengths[donor] * 1.06 < lengths[base]  # about as short as alone
    same = [tokens_of(base, w) == tokens_of(made, w) for w in words]
    assert sum(same) > 0.85 * len(same)  # base text: mostly as before
    rows_only = united(kind, "vocab_only")[2]
    assert all(tokens_of(base, w) == tokens_of(rows_only, w) for w in words)


def test_three_models_give_their_rules_in_order():
    inputs = [read(n, json.loads(trained("BPE", n, s)))
              for n, s in (("prose", 600), ("code", 800), ("prose", 1200))]  # fmt: skip
    found = output_vocabulary(inputs, [10**6] * 3, "union")
    donors = [donor for _, donor in found.appended]
    assert donors == sorted(donors)
    assert set(donors) == {1, 2}
    made = load(found.document)
    assert made.get_vocab() == dict(found.ids)
    for tokenizer in inputs:
        for piece in list(tokenizer.ids)[-50:]:
            text = made.decode([found.ids[piece]])
            assert made.encode(text).tokens == [piece]

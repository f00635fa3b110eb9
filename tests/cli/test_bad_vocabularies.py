"""Tokenizers, tokens and chat templates that cannot be merged, and the exact words that say why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .models import linear, model, tokenizer, write_json
from .program import merge, refused, run

TOKENS = [f"t{i}" for i in range(12)]
SECOND = "models[1] (line 4): "
JINJA = "no Jinja text and not one of auto, alpaca, chatml, exaone, llama3, mistral"
CHOICES = (
    "Say which tokens the result has: tokenizer_source: base (the base's), union (all of them) "
    "or the name of a model."
)
NO_FILES = (
    "has no tokenizer files, so its rows cannot be matched with tokens. Put its tokenizer into "
    "its folder, or remove the tokenizer setting."
)
WHOLE = "tokenizer.pad_to_multiple_of (line 5): a whole number of at least 1 is wanted, not "

Make = Callable[[Path], object]


@pytest.fixture
def same(models) -> Path:
    """``A`` and ``B`` know the same twelve tokens, one for each row."""
    for name in "AB":
        write_json(models / name / "tokenizer.json", tokenizer(TOKENS))
    return models


def refused_of(setting: str) -> list[str]:
    """What is said of a setting on line 5, for a merge of ``A`` and ``B``."""
    return refused(linear("./A", "./B", more=setting))


# --- tokenizers ---------------------------------------------------------------------------------


def unigram(folder: Path) -> None:
    pieces = [[token, 0.0] for token in [*TOKENS[:10], "p", "q"]]
    document = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
    }
    write_json(folder / "B/tokenizer.json", document)


def in_b(content: str, name: str = "tokenizer.json") -> Make:
    return lambda folder: (folder / "B" / name).write_text(content)


def without_b(folder: Path) -> None:
    (folder / "B/tokenizer.json").unlink()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:a\n"


TOKENIZERS: dict[str, tuple[str, Make, str]] = {
    "other tokens": (
        "",
        lambda here: write_json(here / "B/tokenizer.json", tokenizer(["x", "y", *TOKENS[2:]])),
        SECOND + "2 token ids of ./B mean other tokens than in ./A (id 0 is 'x', not 't0'); 10 of "
        f"12 and 12 tokens are shared. {CHOICES}",
    ),
    "missing": ("tokenizer_source: base", without_b, f"{SECOND}./B {NO_FILES}"),
    "missing, union": ("tokenizer: {}", without_b, f"{SECOND}./B {NO_FILES}"),
    "two kinds": (
        "tokenizer_source: union",
        unigram,
        "tokenizer_source (line 5): 2 tokens (p, q) of ./B cannot come into the tokenizer of ./A: "
        "one is a Unigram tokenizer, the other BPE. Write tokenizer: {source: union, union_mode: "
        "added_only} to take its added tokens only, or choose one model's tokenizer with source.",
    ),
    "no JSON": (
        "tokenizer_source: union",
        in_b("{"),
        "B/tokenizer.json: is not valid JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    "git-lfs pointer": (
        "tokenizer_source: union",
        in_b(POINTER),
        "B/tokenizer.json: is a git-lfs pointer (56 bytes): run git lfs pull",
    ),
    "no vocabulary": (
        "tokenizer_source: base",
        in_b('{"model": []}'),
        "B/tokenizer.json: has no vocabulary of tokens and ids where a tokenizer.json has one. "
        "Download it again, or remove it to merge without a tokenizer.",
    ),
}


def test_what_git_lfs_has_not_fetched_is_not_copied_as_a_tokenizer(same):
    for name in "AB":
        (same / name / "tokenizer.json").write_text(POINTER)
        (same / name / "plot.png").write_text(POINTER)
    assert refused(linear("./A", "./B")) == [
        "A/tokenizer.json: is a git-lfs pointer (56 bytes): run git lfs pull"
    ]


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_used(case, same):
    setting, make, message = TOKENIZERS[case]
    make(same)
    assert refused_of(setting) == [message]


# --- settings -----------------------------------------------------------------------------------

MODEL_TOKEN = "tokenizer: {tokens: {t1: {source: {kind: model_token, model: ./A%s}}}}"
ONE_OF = "kind: model_token needs exactly one of 'token' and 'token_id'"
SETTINGS = {
    "tokenizer_source: unoin": "tokenizer_source (line 5): 'unoin' is neither union nor base, and "
    "no model here, did you mean union?",
    "tokenizer_source: ./nope": "tokenizer_source (line 5): ./nope does not exist (looks like a "
    "local path)",
    "tokenizer_source: model:./nope": "tokenizer_source (line 5): ./nope does not exist (looks "
    "like a local path)",
    "tokenizer: union": "tokenizer (line 5): a mapping is wanted, not the text 'union'",
    "tokenizer: {sorce: base}": "tokenizer.sorce (line 5): unknown key, did you mean source?",
    "tokenizer: {source: base}\ntokenizer_source: base": "tokenizer_source (line 6): tokenizer and "
    "tokenizer_source say the same thing; keep one of them",
    "tokenizer: {union_mode: marge}": "tokenizer.union_mode (line 5): 'marge' is not one of merge, "
    "added_only, vocab_only, did you mean merge?",
    "tokenizer: {missing: zeros}": "tokenizer.missing (line 5): 'zeros' is not one of peers, "
    "subword, mean, zero, did you mean zero?",
    "tie: brake": "tie (line 5): 'brake' is not one of keep, force, break, did you mean break?",
    # padding
    "tokenizer: {pad_to_multiple_of: 0}": WHOLE + "the number 0",
    "tokenizer: {pad_to_multiple_of: -1}": WHOLE + "the number -1",
    "tokenizer: {pad_to_multiple_of: a}": WHOLE + "the text 'a'",
    "tokenizer: {pad_to_multiple_of: 1.5}": WHOLE + "the number 1.5",
    "tokenizer: {pad_to_multiple_of: 1000000}": "tokenizer.pad_to_multiple_of (line 5): 1000000 is "
    "more than 65536; vocabularies are padded to 8, 64 or 128",
    # tokens
    "tokenizer: {tokens: [t1]}": "tokenizer.tokens (line 5): a mapping is wanted, not a list. Take "
    "away the '-' before its keys.",
    "tokenizer: {tokens: {t1: ./A}}": "tokenizer.tokens.t1 (line 5): a mapping is wanted, not the "
    "text './A'",
    "tokenizer: {tokens: {t1: {sorce: ./A}}}": "tokenizer.tokens.t1.sorce (line 5): unknown key, "
    "did you mean source?",
    "tokenizer: {tokens: {t1: {source: ./A, force: maybe}}}": "tokenizer.tokens.t1.force (line 5): "
    "true or false is wanted, not the text 'maybe'",
    "tokenizer: {tokens: {t99: {source: ./B}}}": "tokenizer.tokens.t99.source (line 5): ./B has no "
    "token 't99'. Similar tokens there: 't9'.",
    "tokenizer: {tokens: {zzz: {source: ./B}}}": "tokenizer.tokens.zzz.source (line 5): ./B has no "
    "token 'zzz'",
    "tokenizer: {tokens: {t1: {source: ./nope}}}": "tokenizer.tokens.t1 (line 5): ./nope does not "
    "exist (looks like a local path)",
    "tokenizer: {tokens: {t1: {source: {kind: zer}}}}": "tokenizer.tokens.t1.source.kind (line 5): "
    "'zer' is not one of zero, model_token, mean_of_subwords, did you mean zero?",
    MODEL_TOKEN % "": f"tokenizer.tokens.t1.source (line 5): {ONE_OF}",
    MODEL_TOKEN % ", token: t2, token_id: 2": f"tokenizer.tokens.t1.source (line 5): {ONE_OF}",
    MODEL_TOKEN % ", token: T2": "tokenizer.tokens.t1.source (line 5): ./A has no token 'T2'",
    MODEL_TOKEN % ", token: 2": "tokenizer.tokens.t1.source.token (line 5): is not text; put it in "
    "quotes",
    MODEL_TOKEN % ", token_id: 12": "tokenizer.tokens.t1.source (line 5): ./A has no row 12: its "
    "embedding has rows 0 to 11",
    MODEL_TOKEN % ", token_id: -1": "tokenizer.tokens.t1.source.token_id (line 5): a token id is 0 "
    "or more",
    MODEL_TOKEN % ", token_id: x": "tokenizer.tokens.t1.source.token_id (line 5): a whole number "
    "is wanted, not the text 'x'",
    "tokenizer: {tokens: {t1: {source: {kind: model_token, token: t2}}}}": "tokenizer.tokens.t1."
    "source (line 5): kind: model_token needs the key 'model'",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_means_nothing(setting, same):
    assert refused_of(setting) == [SETTINGS[setting]]


def test_a_row_of_another_width(same):
    model(same / "W", hidden=16, tokens=TOKENS)
    assert refused_of("tokenizer: {tokens: {t1: {source: ./W}}}") == [
        "tokenizer.tokens.t1.source (line 5): the embeddings of ./W are 16 wide, those of ./A 8. "
        "A row can only come from a model of the same width."
    ]


def test_a_token_beyond_the_rows_of_its_model(same):
    write_json(same / "B/tokenizer.json", tokenizer([*TOKENS, "t12"]))
    said = refused_of("tokenizer: {source: base, tokens: {t12: {source: ./B}}}")
    assert said == [
        "tokenizer.tokens.t12.source (line 5): ./B has no row 12 of 't12': its embedding has rows "
        "0 to 11"
    ]


def test_all_mistakes_are_told_together(same):
    said = refused_of(
        "tokenizer: {source: base, tokens: {t99: {source: ./B}, t98: {source: ./A}}}\n"
        "chat_template: {model: ./A}"
    )
    assert [line.partition(" ")[0] for line in said] == [
        "tokenizer.tokens.t99.source",
        "tokenizer.tokens.t98.source",
        "chat_template",
    ]


# --- chat templates -----------------------------------------------------------------------------

TEMPLATE = "chat_template (line 5): "
TEMPLATES = {
    "chatmll": f"'chatmll' is {JINJA}, did you mean chatml?",
    "'{{ x }}'": f"'{{{{ x }}}}' is {JINJA}",
    "./A": f"'./A' is {JINJA}, that of a model is chat_template: {{model: ./A}}",
    "3": "3 is not text; put it in quotes if it is a chat template",
    "[chatml]": "a chat template is a text, not a list",
    "{modle: ./A}": "unknown key 'modle' in a model reference, did you mean model?",
    "{model: ./nope}": "./nope does not exist (looks like a local path)",
    "{model: ./A}": "./A has no chat template. The built-in ones are alpaca, chatml, exaone, "
    "llama3, mistral.",
    "'{% for m in messages %}{{ m.content }}'": "line 1 of the template: Unexpected end of "
    "template. Jinja was looking for the following tags: 'endfor' or 'else'. The innermost block "
    "that needs to be closed is 'for'.",
    "'{% for m in messages %}{{ m.content + 1 }}{% endfor %}'": "line 1 of the template: it cannot "
    'be rendered: can only concatenate str (not "int") to str',
    "'{% for m in mesages %}{{ m.content }}{% endfor %}'": "the template does not print the "
    "messages of a conversation. They are in the list messages, each with role and content; "
    "nothing gives it mesages.",
    "\"{{ raise_exception('not today') }}\"": "the template refuses every conversation: not today",
    "\"{{ 'a' * 10 ** 10 }}\"": "line 1 of the template: it takes more work than any chat template "
    "needs (over 250,000 steps)",
}


@pytest.mark.parametrize("written", TEMPLATES)
def test_a_chat_template_that_does_not_work(written, same):
    assert refused_of(f"chat_template: {written}") == [TEMPLATE + TEMPLATES[written]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "chat_template.jinja",
            b"\n{% if %}",
            TEMPLATE + "line 2 of the template of ./B: Expected an expression, got 'end of "
            "statement block'",
        ),
        ("chat_template.jinja", b"\xff", "B/chat_template.jinja: is not UTF-8 text (byte 0)"),
        (
            "tokenizer_config.json",
            b"[",
            "B/tokenizer_config.json: is not valid JSON: Expecting value: line 1 column 2 (char 1)",
        ),
    ],
)
def test_a_template_of_a_model_that_does_not_work(name, content, message, same):
    (same / "B" / name).write_bytes(content)
    assert refused_of("chat_template: auto") == [message]


# --- what is only warned of ---------------------------------------------------------------------


def warned_of(setting: str) -> list[str]:
    """The warnings of a merge of ``A`` and ``B`` that is carried out."""
    done = merge(linear("./A", "./B", more=setting))
    assert done.code == 0, done.err
    found = [line for line in done.lines if line.startswith("warning: ")]
    return [line.removeprefix("warning: ") for line in found]


def test_tokens_of_the_template_that_the_output_has_not(same):
    said = warned_of("chat_template: chatml")
    assert said == [
        "chat_template (line 5): the template (built-in chatml) writes '<|im_start|>', "
        "'<|im_end|>', which the output's vocabulary does not have as one token. Add them under "
        "tokenizer: tokens:, or choose another template.",
    ]
    assert "<|im_start|>" in Path("out/chat_template.jinja").read_text()


def test_auto_without_a_template(same):
    said = warned_of("chat_template: auto")
    assert said == ["chat_template (line 5): no model of this merge has one; none is written"]


def test_a_token_that_no_model_has(same):
    said = warned_of("tokenizer: {source: base, tokens: {t1: {}, t2: , new: {}}}")
    assert said == [
        "tokenizer (line 5): no model has a row for 'new': the output's is zero. Give it a source "
        "under tokenizer: tokens:."
    ]
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 13


def test_check_refuses_as_merge_does(same):
    Path("r.yml").write_text(linear("./A", "./B", more="chat_template: chatmll"))
    done = run("check", "r.yml")
    assert (done.code, done.out) == (2, "")
    assert done.lines == [f"error: {TEMPLATE}{TEMPLATES['chatmll']}"]

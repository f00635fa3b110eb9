"""Chat templates: which one is taken, whether it works, and what is written."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from mergeloom.errors import CheckpointError, RecipeError
from mergeloom.recipe.fields import BUILT_IN_TEMPLATES
from mergeloom.types import Checkpoint, ModelReference
from mergeloom.vocabulary.chat_template import (
    Template,
    read_template,
    resolve_template,
    template_files,
)
from mergeloom.vocabulary.template_check import check_template, needed_tokens

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello!"}
LAST = {"role": "user", "content": "2+3?"}
TALK = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
SMOLLM = Path(__file__).parents[2] / ".cache/real/smollm2-135m-instruct"


def model(label: str = "A", **files: str | bytes | dict) -> tuple[str, Checkpoint]:
    """An input with these side files; ``_json`` and ``_jinja`` stand for the endings."""
    content = {}
    for name, value in files.items():
        stem, _, ending = name.rpartition("_")
        text = json.dumps(value) if isinstance(value, dict) else value
        content[f"{stem}.{ending}"] = text.encode() if isinstance(text, str) else text
    found = Checkpoint(label, Path("/m"), {}, side_files=tuple(content), texts=content)
    return label, found


def templates(*texts: str | None) -> list[tuple[str, Checkpoint]]:
    """Inputs ``m0``, ``m1``, ... with these templates."""
    return [
        model(f"m{i}", **({} if text is None else {"chat_template_jinja": text}))
        for i, text in enumerate(texts)
    ]


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as error:
        check_template(text)
    return str(error.value)


# --- the built-in templates, against strings written from what their makers published ---

PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
PUBLISHED = {
    # OpenAI's chat markup language.
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n",
    ),
    # Meta's model card of Llama 3.
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+3?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>",
    ),
    # Mistral's tokenizer V3: the system message goes before the last question.
    "mistral": (
        "<s>[INST] Hi[/INST] Hello!</s>[INST] Be brief.\n\n2+3?[/INST]",
        "<s>[INST] Hi[/INST] Hello!</s>",
    ),
    # LG's EXAONE 3.5: a user's turn ends with its line, the others with a token.
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n"
        "[|user|]2+3?\n[|assistant|]",
        "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n",
    ),
    # Stanford's Alpaca, repeated for further turns; a system message replaces the preamble.
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>"
        "\n\n### Instruction:\n2+3?\n\n### Response:\n",
        f"<s>{PREAMBLE}\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>",
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of transformers, for its ``apply_chat_template``."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")


def applied(tokenizer, text: str, messages: list[dict[str, str]], prompt: bool) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=text, tokenize=False, add_generation_prompt=prompt
    )


def test_the_recipe_and_the_package_know_the_same_names():
    folder = files("mergeloom.vocabulary") / "templates"
    assert sorted(f.name for f in folder.iterdir()) == [
        f"{name}.jinja" for name in BUILT_IN_TEMPLATES
    ]


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_a_built_in_template_prints_the_published_format(name, tokenizer):
    found = resolve_template(name, [])
    assert found is not None
    assert (found.origin, found.model) == (f"built-in {name}", None)
    long, short = PUBLISHED[name]
    assert applied(tokenizer, found.text, [SYSTEM, FIRST, SAID, LAST], True) == long
    assert applied(tokenizer, found.text, [FIRST, SAID], False) == short


@pytest.mark.parametrize("name", ["mistral", "alpaca"])
def test_a_format_without_a_place_for_a_role_says_so(name, tokenizer):
    found = resolve_template(name, [])
    with pytest.raises(Exception, match="After an optional system message"):
        applied(tokenizer, found.text, [FIRST, {"role": "tool", "content": "5"}], True)


# --- which one is taken ---


@pytest.mark.parametrize(
    ("texts", "winner"),
    [
        ((None, TALK + "1"), 1),  # the base has none
        ((TALK + "1", TALK + "2", TALK + "2"), 1),  # most frequent, against the base
        ((TALK + "1", TALK + "2", None), 0),  # a tie is the first one's, which is the base
        ((TALK + "1", TALK + "2", f"\n{TALK}2 \n", TALK + "1"), 0),
        ((TALK + "1", TALK + "2", f"\n{TALK}2 \n"), 1),  # blanks around do not count
        (("  \n", TALK + "1"), 1),  # and alone are no template
    ],
)
def test_auto(texts, winner):
    found = resolve_template("auto", templates(*texts))
    assert found == Template(texts[winner], f"m{winner}", winner)


def test_auto_without_any_template():
    assert resolve_template("auto", templates(None, " ")) is None


def test_a_model_a_text_and_what_is_neither():
    inputs = templates(TALK, None)
    found = resolve_template(ModelReference("m0"), inputs)
    assert found == Template(TALK, "m0", 0)
    assert resolve_template(TALK, inputs) == Template(TALK, "the recipe")
    long = "{# " + "x" * 5000 + " #}" + TALK  # longer than any file name
    assert resolve_template(long, inputs) == Template(long, "the recipe")
    names = "auto, alpaca, chatml, exaone, llama3, mistral"
    for setting, said in {
        "chatmll": f"'chatmll' is no Jinja text and not one of {names}, did you mean chatml?",
        ModelReference("m1"): "m1 has no chat template. The built-in ones are alpaca, chatml, "
        "exaone, llama3, mistral.",
        ModelReference("m00"): "m00 is not a model of this merge, did you mean m0?",
        "{% for m in messages %}": "line 1 of the template: Unexpected end of template. Jinja was "
        "looking for the following tags: 'endfor' or 'else'. The innermost block that needs to be "
        "closed is 'for'.",
    }.items():
        with pytest.raises(RecipeError) as error:
            resolve_template(setting, inputs, line=7)
        assert str(error.value) == f"chat_template (line 7): {said}"
    with pytest.raises(RecipeError) as error:
        resolve_template("auto", templates("{{ 1 / 0 }}"))
    assert "line 1 of the template of m0: it cannot be rendered: division" in str(error.value)


# --- reading and writing ---

NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, None),
        ({"chat_template_jinja": "J", "tokenizer_config_json": {"chat_template": "C"}}, "J"),
        ({"tokenizer_config_json": {"chat_template": "C"}}, "C"),
        ({"tokenizer_config_json": {"chat_template": NAMED}}, "D"),
        ({"tokenizer_config_json": {"chat_template": {"default": "D", "rag": "R"}}}, "D"),
        ({"tokenizer_config_json": {"chat_template": NAMED[:1]}}, None),
        ({"tokenizer_config_json": {}, "chat_template_json": {"chat_template": "P"}}, "P"),
        ({"tokenizer_config_json": {"chat_template": None}}, None),
        ({"chat_template_jinja": b"\xef\xbb\xbfJ\n"}, "J\n"),
    ],
)
def test_reading(files, text):
    assert read_template(model(**files)[1]) == text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"chat_template_jinja": b"a\xff"}, "chat_template.jinja: is not UTF-8 text (byte 1)"),
        ({"tokenizer_config_json": "[]"}, "tokenizer_config.json: holds a JSON list, not an obj"),
        ({"tokenizer_config_json": "{"}, "tokenizer_config.json: is not valid JSON: Expecting"),
        ({"tokenizer_config_json": "[" * 99999}, "tokenizer_config.json: is not valid JSON: nes"),
        ({"tokenizer_config_json": {"chat_template": 3}}, "is a text or named texts, not a int"),
    ],
)
def test_files_that_cannot_be_read(files, said):
    with pytest.raises(CheckpointError) as error:
        read_template(model(**files)[1])
    assert said in str(error.value)


@pytest.mark.parametrize("old", ["old", NAMED])
def test_every_file_that_holds_a_template_holds_the_new_one(old, tmp_path, tokenizer):
    """And transformers, which loads them together, sees that one."""
    new = Template(TALK + "é", "the recipe")
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    donor = {
        "tokenizer_config.json": json.dumps({**config, "chat_template": old, "last": 1}).encode(),
        "chat_template.json": b'{"chat_template": "old"}',
    }
    written = template_files(new, donor)
    assert list(written) == ["chat_template.jinja", *donor]
    assert written["chat_template.jinja"].decode() == new.text
    assert json.loads(written["chat_template.json"]) == {"chat_template": new.text}
    assert list(json.loads(written["tokenizer_config.json"])) == [*config, "chat_template", "last"]

    from transformers import PreTrainedTokenizerFast

    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
        if name != "chat_template.json":
            assert PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == new.text


def test_files_without_a_template_are_left_alone():
    found = template_files(Template(TALK, "the recipe"), {"tokenizer_config.json": b'{"a": 1}'})
    assert found == {"chat_template.jinja": TALK.encode()}


# --- whether it works ---

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system!') }}{% endif %}" + TALK
)
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
GENERATION = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
OTHERS = (
    "{{ strftime_now('%Y') }}{{ messages[1:] | tojson(indent=2) }}{{ {'a': [1, (2,)]} ~ 'b' }}"
    "{% for i in range(3) if i is odd %}{% break %}{% endfor %}{{ '%s' % 'a' * 2 + 2 | string }}"
    "{% set n = namespace(x=dict(a=1)) %}{{ n.x | items | list }}{{ '{:>4}'.format('é' < 'f') }}"
)


@pytest.mark.parametrize("text", [TALK, NO_SYSTEM, PARTS, GENERATION, OTHERS + TALK])
def test_what_templates_do(text):
    check_template(text)


@pytest.mark.parametrize("text", [OTHERS, GENERATION, SMOLLM / "chat_template.jinja"])
def test_the_sandbox_prints_what_transformers_prints(text, tokenizer):
    from mergeloom.vocabulary.template_sandbox import Sandbox

    if isinstance(text, Path):
        if not text.exists():
            pytest.skip("make real-models fetches SmolLM2")
        text = text.read_text(encoding="utf-8")
        assert needed_tokens(text) == ("<|im_start|>", "<|im_end|>")
    for messages in ([SYSTEM, FIRST, SAID, LAST], [FIRST]):
        variables = {"messages": messages, "add_generation_prompt": True, "tools": None}
        assert Sandbox(text).render(variables) == applied(tokenizer, text, messages, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TALK + "\n{{ x | nonesuch }}", "line 2 of the template: No filter named 'nonesuch'."),
        (TALK + "\n\n{% if %}", "line 3 of the template: Expected an expression, got 'end of "),
        (TALK + "\n{{ 'a' + 1 }}", "line 2 of the template: it cannot be rendered: can only conc"),
        (
            "{% for m in mesages %}{{ m.content }}{% endfor %}",
            "the template does not print the messages of a conversation. They are in the list "
            "messages, each with role and content; nothing gives it mesages.",
        ),
        (
            "{% if messages | length > 3 %}{{ raise_exception('short!') }}{% endif %}{{ 'x' }}",
            "the template does not print the messages of a conversation. They are in the list",
        ),
        ("{{ raise_exception('a\x1b\nb') }}", "the template refuses every conversation: a b"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "'__class__' of 'str' object is unsafe"),
        ("{% include '/etc/passwd' %}", "it cannot be rendered: no loader for this environment"),
        (TALK + "\ud800", "the template: it holds half a character (a lone surrogate)"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "it is nested too deeply, or calls itself"),
        ("{{ x | e }}" * 5500, "the template: it takes more work than any chat template needs"),
        (TALK + "x" * 70_000, " characters; 65,536 are the most that is read"),
    ],
)
def test_what_does_not_work(text, said):
    assert said in refusal(text)


GROWING = "{{% set n = namespace(x={}, y='ab') %}}{{% for i in range(99) %}}{}{{% endfor %}}"
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop's condition": "{% for i in range(999) %}{% for j in range(999) if false %}{% endfor %}"
    "{% endfor %}",
    "recursion": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(99) }}",
    "text times": "{{ 'a' * 10 ** 10 }}",
    "list times": "{{ [0] * 10 ** 10 }}",
    "power": "{{ 2 ** (10 ** 10) }}",
    "filter": "{{ 'a' | center(10000000000) }}",
    "filter of a filter": "{{ range(99999) | map('string') | map('center', 9999) | list }}",
    "method": "{{ 'a'.ljust(10 ** 10) }}",
    "tabs": r"{{ '\t'.expandtabs(10 ** 9) }}",
    "bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "printf": "{{ '%10000000000d' % 1 }}",
    "printf with a star": "{{ '%*d' % (10 ** 10, 1) }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "format in a format": "{{ '{:{}}'.format(1, '9999999999') }}",
    "the format filter": "{{ '%10000000000d' | format(1) }}",
    "indent": "{{ messages | tojson(indent=10 ** 9) }}",
    "wrapping": "{{ 'a a a a a a a a' | wordwrap(1, wrapstring='x' * 200000) }}",
    "joining": GROWING.format("'aa'", "{% set n.x = n.x ~ n.x %}"),
    "adding": GROWING.format("'aa'", "{% set n.x = n.x + n.x %}"),
    "adding lists": GROWING.format("['aa']", "{% set n.x = n.x + n.x %}"),
    "nesting": GROWING.format("['aa']", "{% set n.x = [n.x, n.x] %}") + "{{ n.x }}",
    "replacing": GROWING.format("'aa'", "{% set n.x = n.x.replace('a', n.x) %}"),
    "join": GROWING.format("'aa'", "{% set n.x = n.x | join(n.x) %}"),
    "blocks": GROWING.format("'aa'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_cannot_take_the_machine(case):
    """Each of these would run for hours or fill the memory in jinja2's own sandbox."""
    said = refusal(TALK + "\n" + HOSTILE[case])
    assert said == (
        "chat_template: line 2 of the template: it takes more work than any chat template needs "
        "(over 250,000 steps)"
    )


# --- the tokens it needs ---


def test_needed_tokens():
    assert needed_tokens(TALK) == ()
    assert {
        name: needed_tokens(resolve_template(name, []).text) for name in BUILT_IN_TEMPLATES
    } == {
        "alpaca": (),
        "chatml": ("<|im_start|>", "<|im_end|>"),
        "exaone": ("[|system|]", "[|endofturn|]", "[|assistant|]", "[|user|]"),
        "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "mistral": ("[INST]", "[/INST]"),
    }
    put_together = "<s>{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    assert needed_tokens(put_together + "<｜User｜><end_of_turn><b>[a]<|a b|>{{ eos_token }}") == (
        "<s>",
        "<｜User｜>",
        "<end_of_turn>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
    )

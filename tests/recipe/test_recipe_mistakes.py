"""Bad recipes and the exact words they get."""

from __future__ import annotations

import os

import pytest
from recipe_words import METHODS

from mergeloom.errors import Problems, RecipeError
from mergeloom.recipe import load_recipe, yaml_reader

GOOD = "models: [{model: A, parameters: {weight: 1}}]\nmerge_method: linear\n"
METHOD = "merge_method: linear\n"
TASK = "merge_method: dare_ties\nbase_model: base\nmodels: [{model: A, parameters: {weight: 1}}]\n"
KEYS = (
    "merge_method, models, slices, modules, base_model, parameters, input_model_parameters, dtype, "
    "out_dtype, tokenizer_source, tokenizer, chat_template, tie, name, include, exclude"
)


def told(source, **options) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, methods=METHODS, **options)
    return [str(problem) for problem in caught.value.problems]


YAML = {
    "": "the recipe is empty",
    "# nothing\n---\n...\n": "the recipe is empty",
    "- a\n- b\n": "line 1: a recipe is a mapping of keys to values, not a list",
    "\norg/A\n": "line 2: a recipe is a mapping of keys to values, not the text 'org/A'",
    "models:\n\t- model: A\n": (
        "line 2: not valid YAML at column 1: a tab stands where YAML wants spaces. "
        "Indent with spaces."
    ),
    'models:\n  - model: "G:\\9B\\base"\n': (
        "line 2: not valid YAML at column 16: a backslash in double quotes starts an escape. "
        "Write Windows paths without quotes, in single quotes, or with forward slashes."
    ),
    "models:\n  - model: A\n   parameters: {}\n": (
        "line 3: not valid YAML at column 4: the indentation does not line up with the lines "
        "above. Give the keys of one mapping the same number of spaces."
    ),
    "models: [{model: A}\nmerge_method: linear\n": (
        "line 2: not valid YAML at column 1: a list opened with '[' is not closed. "
        "It was opened on line 1."
    ),
    "a: b: c\n": (
        "line 1: not valid YAML at column 5: a ':' stands where no key can be. Check the "
        "indentation of this line and the one above, or put the value in quotes."
    ),
    "filter: *\n": (
        "line 1: not valid YAML at column 10: * and & name anchors and aliases. "
        'Put the value in quotes: filter: "*".'
    ),
    "scale: &SCALE 1\nx: *SCAL\n": (
        "line 2: not valid YAML at column 4: the alias *SCAL has no anchor &SCAL before it. "
        "Did you mean SCALE?"
    ),
    "a: &x 1\nb: &x 2\n": (
        "line 2: not valid YAML at column 4: an anchor is defined twice. "
        "Give one of them another name."
    ),
    "x: !!python/object/apply:os.system [ls]\n": (
        "x (line 1): the tag !!python/object/apply:os.system is refused: a recipe is plain data"
    ),
    "x: !mine {a: 1}\n": "x (line 1): the tag !mine is refused: a recipe is plain data",
    "dtype: a\nmodels: [A]\ndtype: b\n": (
        "dtype (line 3): written twice, on lines 1 and 3. Keep one of them."
    ),
    "{dtype: a, dtype: b}\n": "dtype (line 1): written twice on line 1. Keep one of them.",
    "a: &x 1\n---\nb: *x\n": (
        "line 3: not valid YAML at column 4: the anchor &x is of an earlier document. "
        "Write it in each one."
    ),
    f"x: {'9' * 5000}\n": (
        f"x (line 1): '{'9' * 55}...' cannot be read as int; put it in quotes if it is text"
    ),
    "a: &a [*a]\n": "line 1: an alias contains itself",
    "x: "
    + "[" * 3000
    + "\n": "line 1: not valid YAML at column 103: nested more than 100 levels deep",
    "a\x00b: 1\n": "line 1: not YAML text: it holds the character U+0000. Is it a recipe?",
    "? [a]\n: b\n": "line 1: a key must be a plain word, not a list or a mapping",
    "<<: !mine {a: 1}\n": "line 1: the tag !mine is refused: a recipe is plain data",
    "<<: 3\n": "line 1: <<: wants a mapping or a list of mappings",
    "x: !!int abc\n": "x (line 1): 'abc' cannot be read as int; put it in quotes if it is text",
}


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_broken_yaml_is_one_sentence(text):
    assert told(text) == [YAML[text]]


def test_too_many_values_are_refused_before_the_rest_is_read(monkeypatch):
    monkeypatch.setattr(yaml_reader, "MAX_NODES", 20)
    assert told("x: [" + "1, " * 30 + "\n") == [
        "line 1: not valid YAML at column 56: more than 20 values, which no recipe has"
    ]


def test_an_alias_bomb_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 30):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    assert told("\n".join(lines)) == ["the aliases of this file stand for more than 200,000 values"]


STRUCTURE = {
    # the right level
    "models:\n  - model: A\n    parameters:\n    weight: 0.5\nmerge_method: linear\n": [
        "models[0].weight (line 4): belongs under parameters: (indent it)"
    ],
    "models:\n  - model: A\n    weight: 0.5\nmerge_method: linear\n": [
        "models[0].weight (line 3): belongs under parameters: (write parameters: {weight: ...})"
    ],
    GOOD + "parameters:\n  dtype: bfloat16\n": [
        "parameters.dtype (line 4): dtype is a top-level key"
    ],
    GOOD + "parameters: {filter: mlp, value: 1}\n": [
        "parameters.filter (line 3): belongs inside a parameter: "
        "weight: [{filter: ..., value: ...}]",
        "parameters.value (line 3): belongs inside a parameter: "
        "weight: [{filter: ..., value: ...}]",
    ],
    "models:\n  - {model: A, dtype: bfloat16}\nmerge_method: linear\n": [
        "models[0].dtype (line 2): dtype is a top-level key"
    ],
    GOOD + "embed_slerp: true\n": [
        "embed_slerp (line 3): belongs under parameters: (write parameters: {embed_slerp: ...})"
    ],
    # names
    GOOD + "dtpe: bfloat16\n": ["dtpe (line 3): unknown key, did you mean dtype?"],
    GOOD + "qqq: 1\n": [f"qqq (line 3): unknown key; the keys here are {KEYS}"],
    GOOD + "weights: 1\n": [
        "weights (line 3): unknown key, did you mean parameters: {weight: ...}?"
    ],
    "merge-method: linear\nmodles: [A]\n": [
        "merge-method (line 1): unknown key, did you mean merge_method?",
        "modles (line 2): unknown key, did you mean models?",
    ],
    "models: [A]\nmerge_method: dare-ties\n": [
        "merge_method (line 2): unknown method 'dare-ties', did you mean dare_ties? The methods "
        "are linear, slerp, dare_ties, della_linear, passthrough, karcher, model_stock, sce"
    ],
    "models: [A]\nmerge_method: qqq\n": [
        "merge_method (line 2): unknown method 'qqq'; the methods are linear, slerp, dare_ties, "
        "della_linear, passthrough, karcher, model_stock, sce"
    ],
    "models: [A]\nmerge_method: 3\n": [
        "merge_method (line 2): 3 is not text; put it in quotes if it is the name of a method"
    ],
    # sections
    METHOD: ["one of models, slices and modules is required"],
    METHOD + "models: []\n": [
        "models (line 2): is empty; one of models, slices and modules must name the inputs"
    ],
    METHOD + "models: {model: A}\n": [
        "models (line 2): a list is wanted, not a mapping. Begin each entry with '-'."
    ],
    METHOD + "models: [A]\nslices: [{sources: []}]\n": [
        "slices (line 3): models and slices are both given; exactly one of them is wanted",
        "slices[0].sources (line 3): is empty",
    ],
    METHOD + "modules: {a: {models: [A]}, b: {}, c: }\n": [
        "modules.c (line 2): a mapping is wanted, not nothing",
        "modules.b (line 2): one of models and slices is required",
    ],
    "models: [A]\n": ["merge_method: is required: the name of a merge method"],
    GOOD + "parameters: [weight]\n": [
        "parameters (line 3): a mapping is wanted, not a list. Take away the '-' before its keys."
    ],
    # dtypes
    GOOD + "dtype: bfloat\n": ["dtype (line 3): unknown dtype 'bfloat', did you mean bfloat16?"],
    GOOD + "out_dtype: int64\n": [
        "out_dtype (line 3): int64 does not hold fractions; "
        "use bfloat16, float16, float32 or float64"
    ],
    GOOD + "dtype: float8_e4m3fn\n": [
        "dtype (line 3): float8_e4m3fn is too coarse to merge in; "
        "use bfloat16, float16, float32 or float64"
    ],
    GOOD + "dtype: 16\n": ["dtype (line 3): unknown dtype 16, did you mean float16?"],
    # models
    METHOD + "models:\n- a+b+c\n- a@b@c\n- {model: +x}\n- {model: 7}\n- {model: }\n- {}\n- 1\n": [
        "models[0].model (line 3): 'a+b+c' holds more than one '+'. "
        "'+' separates a LoRA; write {model: {path: ...}}",
        "models[1].model (line 4): 'a@b@c' holds more than one '@'. "
        "'@' separates a revision; write {model: {path: ..., revision: ...}}",
        "models[2].model (line 5): a model is wanted on both sides of '+', and one is empty. "
        "'+' separates a LoRA; write {model: {path: ...}}",
        "models[3].model (line 6): 7 is not text; put it in quotes if it is a model",
        "models[4].model (line 7): a model is wanted, and nothing is written",
        "models[5].model (line 8): is required: a folder, a file or a hub id",
        "models[6] (line 9): a mapping is wanted, not the number 1",
    ],
    METHOD + 'models: ["D:\\test"]\n': [
        "models[0].model (line 2): 'D:\\test' holds a control character; in double quotes a "
        "backslash starts an escape, so write Windows paths in single quotes"
    ],
    METHOD + "models: [{model: {path: a, revison: b}}]\n": [
        "models[0].model (line 2): unknown key 'revison' in a model reference, "
        "did you mean revision?"
    ],
    METHOD + "models: [https://huggingface.co/org/A/tree/main]\n": [
        "models[0].model (line 2): 'https://huggingface.co/org/A/tree/main' is a web address; "
        "write org/A"
    ],
    # the rest
    GOOD + "tokenizer: {}\ntokenizer_source: base\n": [
        "tokenizer_source (line 4): tokenizer and tokenizer_source say the same thing; "
        "keep one of them"
    ],
    GOOD + "tokenizer: {union_mode: marge, pad_to_multiple_of: 0}\n": [
        "tokenizer.pad_to_multiple_of (line 3): a whole number of at least 1 is wanted, "
        "not the number 0",
        "tokenizer.union_mode (line 3): 'marge' is not one of merge, added_only, vocab_only, "
        "did you mean merge?",
    ],
    GOOD + "tokenizer:\n  tokens:\n    a: {source: {kind: zer}}\n    b: {sorce: A}\n": [
        "tokenizer.tokens.a.source.kind (line 5): 'zer' is not one of zero, model_token, "
        "mean_of_subwords, did you mean zero?",
        "tokenizer.tokens.b.sorce (line 6): unknown key, did you mean source?",
    ],
    GOOD + "tokenizer: {tokens: {a: {source: {kind: model_token, model: A}}}}\n": [
        "tokenizer.tokens.a.source (line 3): kind: model_token needs exactly one of "
        "'token' and 'token_id'"
    ],
    GOOD + "chat_template: chatmll\n": [
        "chat_template (line 3): 'chatmll' is no Jinja text and not one of auto, alpaca, chatml, "
        "exaone, llama3, mistral, did you mean chatml?"
    ],
    GOOD + "chat_template: ./A\n": [
        "chat_template (line 3): './A' is no Jinja text and not one of auto, alpaca, chatml, "
        "exaone, llama3, mistral, that of a model is chat_template: {model: ./A}"
    ],
    GOOD + "tokenizer_source: unoin\n": [
        "tokenizer_source (line 3): 'unoin' is neither union nor base, and no model here, "
        "did you mean union?"
    ],
    GOOD + "tokenizer: {pad_to_multiple_of: 131072}\n": [
        "tokenizer.pad_to_multiple_of (line 3): 131072 is more than 65536; vocabularies are "
        "padded to 8, 64 or 128"
    ],
    GOOD + "name: ../x\n": [
        "name (line 3): '../x' cannot name a folder; use letters, digits, '-' and '_'"
    ],
    GOOD + "exclude: ['re:(', 1]\n": [
        "exclude[0] (line 3): 're:(' is not a valid regular expression: "
        "missing ), unterminated subpattern at position 0"
    ],
    GOOD + "input_model_parameters: {a+b+c: {weight: 1}}\n": [
        "input_model_parameters.a+b+c (line 3): 'a+b+c' holds more than one '+'. "
        "'+' separates a LoRA; write {model: {path: ...}}"
    ],
}


@pytest.mark.parametrize("text", STRUCTURE, ids=range(len(STRUCTURE)))
def test_structure_mistakes(text):
    assert sorted(told(text)) == sorted(STRUCTURE[text])


RANGES = {
    "[0, -1]": (
        "[0, -1] holds a negative number; layers count from 0 and the end is exclusive; "
        "write [0, null] to end with the last layer"
    ),
    "[-2, 4]": "[-2, 4] holds a negative number; layers count from 0 and the end is exclusive",
    "[5, 3]": "[5, 3] runs backwards; the start comes first and the end is exclusive",
    "3": "two whole numbers are wanted, [start, end), not the number 3",
}


@pytest.mark.parametrize("written", RANGES)
def test_layer_ranges(written):
    text = (
        f"merge_method: passthrough\nslices: [{{sources: [{{model: A, layer_range: {written}}}]}}]"
    )
    assert told(text) == [f"slices[0].sources[0].layer_range (line 2): {RANGES[written]}"]


def test_layer_range_needs_whole_numbers_and_to_be_there():
    text = (
        "merge_method: passthrough\nslices:\n  - sources:\n"
        "    - {model: A, layer_range: [0, 1.5]}\n    - {model: A}\n"
    )
    assert told(text) == [
        "slices[0].sources[0].layer_range[1] (line 4): a whole number is wanted, "
        "not the number 1.5",
        "slices[0].sources[1].layer_range (line 5): is required in a slice: [start, end), "
        "counted from 0, the end is exclusive",
    ]


VALUES = {
    "density: 53": "53 is outside the allowed range, 0 to 1 (percent? use 0.53)",
    "density: -0.5": "-0.5 is outside the allowed range, 0 to 1",
    "density: [0.5, 5]": "5 is outside the allowed range, 0 to 1 (percent? use 0.05)",
    "density: [{filter: mlp, value: 2000}]": "2000 is outside the allowed range, 0 to 1",
    "density: 50%": "'50%' is not a number (percent? use 0.5)",
    "density: '0,5'": "'0,5' is not a number (use 0.5)",
    "density: half": "'half' is not a number",
    "density: .nan": "the number is not finite",
    "density: '1e999'": "the number is not finite",
    "density: ": "has no value; write one or remove the line",
    "density: [1, {value: 1}]": (
        "mixes plain values with {filter, value} entries; write a plain value as {value: ...}"
    ),
    "normalize: 0.5": "0.5 is not true or false",
    "normalize: maybe": "'maybe' is not true or false",
    "rescale: densty": "'densty' is not one of true, density, false, did you mean density?",
}


@pytest.mark.parametrize("setting", VALUES)
def test_values(setting):
    name = setting.partition(":")[0]
    assert told(TASK + f"parameters:\n  {setting}\n") == [
        f"parameters.{name} (line 5): {VALUES[setting]}"
    ]


PLACES = {
    "{filer: mlp, value: 1}": "weight.filer (line 4): unknown key, did you mean filter?",
    "{filter: mlp}": "weight (line 4): needs the key 'value': {filter: ..., value: ...}",
    "[{value: {value: 1}}]": (
        "weight[0].value (line 4): a value is a number or a list of numbers, not a condition"
    ),
    "[1, [2]]": "weight[1] (line 4): a gradient is a flat list of numbers, and this is a list",
    "[1, ~]": "weight[1] (line 4): has no value; write one or remove the line",
    "[{filter: 3, value: 1}]": ("weight[0].filter (line 4): a filter is a text, not the number 3"),
    "[{filter: '', value: 1}]": (
        "weight[0].filter (line 4): the filter is empty; write '*' or leave it out for all tensors"
    ),
    "{value: []}": "weight.value (line 4): an empty list has no value to give",
}


@pytest.mark.parametrize("value", PLACES)
def test_the_place_inside_a_setting_is_told(value):
    assert told(GOOD + f"parameters:\n  weight: {value}\n") == [f"parameters.{PLACES[value]}"]


def test_whole_numbers():
    text = "merge_method: karcher\nmodels: [A]\nparameters:\n  max_iter: {}\n"
    assert told(text.format("10.5")) == ["parameters.max_iter (line 4): 10.5 is not a whole number"]
    assert told(text.format("true")) == ["parameters.max_iter (line 4): true is not a whole number"]
    assert told(text.format("0")) == [
        "parameters.max_iter (line 4): 0 is outside the allowed range, 1 or more"
    ]


def test_every_mistake_is_told_at_once_in_the_order_of_the_file():
    text = (
        "models:\n  - model: A\n    parameters:\n    weight: 0.5\n"
        "  - model: B\n    parameters: {density: 53}\n"
        "merge_method: dare-ties\ndtype: bfloat\n"
    )
    assert [t.split(":")[0] for t in told(text)] == [
        "models[0].weight (line 4)",
        "models[1].parameters.density (line 6)",
        "merge_method (line 7)",
        "dtype (line 8)",
    ]


CHAINS = {
    GOOD + "---\n" + GOOD: (
        "line 5: only one document of a file can be without a name. Give this one a name: key."
    ),
    f"name: x\n{GOOD}---\nname: x\n{GOOD}": (
        "name (line 5): two documents of this file are called 'x'"
    ),
    f"name: x\nmodels: [y]\n{METHOD}---\nname: y\nmodels: [x]\n{METHOD}---\n{GOOD}": (
        "name (line 1): the documents need each other in a circle: x → y → x"
    ),
}


@pytest.mark.parametrize("text", CHAINS, ids=range(len(CHAINS)))
def test_chains(text):
    assert told(text) == [CHAINS[text]]


def test_files(tmp_path):
    missing = tmp_path / "recipe.yml"
    (tmp_path / "recipes.yml").write_text(GOOD)
    assert told(missing) == [f"{missing}: does not exist. Did you mean recipes.yml?"]
    assert told(tmp_path) == [
        f"{tmp_path}: is a folder; a recipe is a YAML file. It holds recipes.yml."
    ]
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"a\n\x93NUMPY")
    assert told(str(binary)) == [
        f"{binary}: is not UTF-8 text (the byte 0x93 on line 2). Save it as UTF-8."
    ]
    empty = tmp_path / "empty.yml"
    empty.write_text("# later\n")
    assert told(empty) == [f"{empty}: the recipe is empty"]
    large = tmp_path / "large.yml"
    large.touch()
    os.truncate(large, 17 * 2**20)
    assert told(large) == [f"{large}: is larger than 16 MiB; a recipe is a small YAML file"]
    assert told("org/none") == ["org/none: does not exist. The folder org does not exist either."]


def test_a_mapping_has_no_lines():
    assert told({"models": ["A"], "merge_method": "linear", "dtpe": 1}) == [
        "dtpe: unknown key, did you mean dtype?"
    ]
    assert told({"models": {1}}) == ["models: a set cannot stand in a recipe"]
    loop: dict = {}
    loop["models"] = loop
    assert "too deeply nested" in told(loop)[0]


WARNINGS = {
    GOOD + "parameters: {densty: 1}\n": (
        "parameters.densty (line 3): no method knows the parameter densty, did you mean density?"
    ),
    GOOD + "parameters: {qqq: 1}\n": (
        "parameters.qqq (line 3): no method knows the parameter qqq; linear reads weight, normalize"
    ),
    GOOD + "parameters: {density: 1}\n": (
        "parameters.density (line 3): linear does not read density; it reads weight, normalize"
    ),
    METHOD + "models: [{model: A, parameters: {weight: 1, normalize: 1}}]\n": (
        "models[0].parameters.normalize (line 2): normalize is one value for all models, "
        "so it is not read here"
    ),
    GOOD + "parameters: {weight: [{value: 1}, {filter: mlp, value: 2}]}\n": (
        "parameters.weight (line 3): entry 1 applies to all tensors, "
        "so the entries after it are never used"
    ),
    METHOD
    + "models: [A, A/]\n": "models[1].model (line 2): A is also models[0]; both entries count",
    METHOD + "models: [{model: A, layer_range: [0, 3]}]\n": (
        "models[0].layer_range (line 2): is ignored in models; use slices to choose layers"
    ),
    METHOD + "slices: [{sources: [{model: A, layer_range: [0, 3]}], residual_weight: 1}]\n": (
        "slices[0].residual_weight (line 2): is ignored; no tool reads it"
    ),
    GOOD + "input_model_parameters: {AB: {weight: 1}}\n": (
        "input_model_parameters.AB (line 3): this recipe does not use this model, did you mean A?"
    ),
    f"name: x\n{GOOD}---\n{GOOD}": "name (line 1): nothing uses document 'x'; it is not computed",
}


@pytest.mark.parametrize("text", WARNINGS, ids=range(len(WARNINGS)))
def test_warnings(text):
    problems = Problems()
    load_recipe(text, methods=METHODS, problems=problems)
    assert [str(w) for w in problems.warnings] == [WARNINGS[text]]
    assert problems.errors == []


def test_warnings_come_with_errors_too():
    problems = Problems()
    with pytest.raises(RecipeError):
        load_recipe(GOOD + "parameters: {densty: 1}\ndtpe: x\n", methods=METHODS, problems=problems)
    assert len(problems.warnings) == 1


def test_lenient_ignores_keys_on_the_wrong_level():
    problems = Problems()
    text = (
        "models:\n  - model: A\n    parameters:\n    weight: 0.5\nmerge_method: linear\n"
        "parameters: {dtype: bfloat16}\n"
    )
    recipe = load_recipe(text, methods=METHODS, lenient=True, problems=problems)
    assert recipe.modules[0].inputs[0].parameters == {}
    assert recipe.parameters == {}
    assert [str(w) for w in problems.warnings] == [
        "models[0].weight (line 4): belongs under parameters: (indent it); it is ignored",
        "parameters.dtype (line 6): dtype is a top-level key; it is ignored",
    ]


def test_lenient_does_not_hide_wrong_values():
    assert told(GOOD + "dtpe: 1\ndtype: bfloat\n", lenient=True) == [
        "dtype (line 4): unknown dtype 'bfloat', did you mean bfloat16?"
    ]

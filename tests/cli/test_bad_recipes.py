"""Recipes that cannot be merged, and the exact words that say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from .models import linear, method, slices
from .program import merge, mistakes, refused, run

KEYS = (
    "merge_method, models, slices, modules, base_model, parameters, input_model_parameters, dtype, "
    "out_dtype, tokenizer_source, tokenizer, chat_template, tie, name, include, exclude"
)
GOOD = linear("./A", "./B")
SHAPE_10 = """\
models: [{model: ./A}, {model: ./B}]
select_topk: .15
merge_method: linear
parameters: {weight: 1}
base_model: ./base
out_dtype: bfloat16
dype: float32
"""


def known_methods() -> str:
    return ", ".join(line.split()[0] for line in run("methods").out.splitlines())


# --- the file ------------------------------------------------------------------------------------

FILES = {
    "empty": (b"", "r.yml: the recipe is empty"),
    "only a comment": (b"# nothing\n", "r.yml: the recipe is empty"),
    "a list": (b"- a\n", "line 1: a recipe is a mapping of keys to values, not a list"),
    "a word": (b"hello", "line 1: a recipe is a mapping of keys to values, not the text 'hello'"),
    "not closed": (
        b"models: [\n",
        "line 2: not valid YAML at column 1: the file ends inside a list or mapping. "
        "Close it with ']' or '}'.",
    ),
    "a tab": (
        b"models:\n\t- ./A\n",
        "line 2: not valid YAML at column 1: a tab stands where YAML wants spaces. "
        "Indent with spaces.",
    ),
    "binary": (
        b"\x00\x01\xff",
        "r.yml: is not UTF-8 text (the byte 0xff on line 1). Save it as UTF-8.",
    ),
    "latin-1": (
        b"merge_method: linear\nname: caf\xe9\n",
        "r.yml: is not UTF-8 text (the byte 0xe9 on line 2). Save it as UTF-8.",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_recipe(case, models):
    content, message = FILES[case]
    assert refused(content) == [message]


def test_no_file_at_all(models):
    assert refused(None) == ["r.yml: does not exist"]
    Path("r.yaml").touch()
    assert refused(None) == ["r.yml: does not exist. Did you mean r.yaml?"]
    assert mistakes(run("check", "no/where/r.yml")) == [
        "no/where/r.yml: does not exist. The folder no/where does not exist either."
    ]
    Path("r.yml").mkdir()
    Path("r.yml/inner.yml").touch()
    folder = "is a folder; a recipe is a YAML file"
    assert refused(None) == [f"r.yml: {folder}. It holds inner.yml."]
    too_long = "x" * 300
    assert mistakes(run("check", too_long)) == [f"{too_long}: cannot be read: File name too long"]


# --- keys and values -----------------------------------------------------------------------------


def bare(*models: str, more: str = "") -> str:
    return method("linear", *models, more=more)


# What the recipe is → what is said of it.
RECIPES = {
    # the method
    method("lineer", "./A"): [
        "merge_method (line 1): unknown method 'lineer', did you mean linear? The methods are M"
    ],
    method("task-arithmetic", "./A"): [
        "merge_method (line 1): unknown method 'task-arithmetic', did you mean task_arithmetic? "
        "The methods are M"
    ],
    method("dare-ties", "./A"): [
        "merge_method (line 1): unknown method 'dare-ties', did you mean dare_ties? "
        "The methods are M"
    ],
    method("no_such_thing", "./A"): [
        "merge_method (line 1): unknown method 'no_such_thing'; the methods are M"
    ],
    # dtypes
    GOOD + "dtype: bfloat\n": ["dtype (line 5): unknown dtype 'bfloat', did you mean bfloat16?"],
    GOOD + "out_dtype: fp61\n": ["out_dtype (line 5): unknown dtype 'fp61', did you mean fp16?"],
    GOOD + "dtype: 16\n": ["dtype (line 5): unknown dtype 16, did you mean float16?"],
    GOOD + "dtype: auto\n": [
        "dtype (line 5): unknown dtype 'auto'; use bfloat16, float16, float32 or float64"
    ],
    GOOD + "dtype: int8\n": [
        "dtype (line 5): int8 does not hold fractions; use bfloat16, float16, float32 or float64"
    ],
    # keys
    GOOD + "dtpe: bfloat16\nselect_topk: 0.1\nqqq: 1\n": [
        "dtpe (line 5): unknown key, did you mean dtype?",
        "select_topk (line 6): belongs under parameters: (write parameters: {select_topk: ...})",
        f"qqq (line 7): unknown key; the keys here are {KEYS}",
    ],
    SHAPE_10: [
        "select_topk (line 2): belongs under parameters: (write parameters: {select_topk: ...})",
        "dype (line 7): unknown key, did you mean dtype?",
    ],
    "merge_method: linear\nmodels:\n- model: ./A\n  parameters:\n  weight: 1\n- model: ./B\n"
    "  weight: 1\n": [
        "models[0].weight (line 5): belongs under parameters: (indent it)",
        "models[1].weight (line 7): belongs under parameters: (write parameters: {weight: ...})",
    ],
    GOOD + "parameters:\n  dtype: bfloat16\n": [
        "parameters.dtype (line 6): dtype is a top-level key"
    ],
    "merge_method: linear\nmodels: ./A\n": [
        "models (line 2): a list is wanted, not the text './A'. Begin each entry with '-'."
    ],
    GOOD + "slices: [{sources: [{model: ./A, layer_range: [0, 4]}]}]\n": [
        "slices (line 5): models and slices are both given; exactly one of them is wanted"
    ],
    # values
    bare("./A", "./B"): [
        "models[0] (line 3): linear needs weight. "
        "Add parameters: {weight: ...} here or at the top level.",
        "models[1] (line 4): linear needs weight. "
        "Add parameters: {weight: ...} here or at the top level.",
    ],
    bare("./A", more="parameters: {weight: [{filter: self_attn, value: 1}]}"): [
        "models[0] (line 3): no entry of weight is for model.embed_tokens.weight and 14 more. "
        "Add a last entry without a filter to weight: {value: ...}."
    ],
    bare("./A", "./B", more="parameters: {weight: 0}"): [
        "models (line 2): linear: the weights 0, 0 sum to zero, so they cannot be normalized "
        "(31 tensors, the first is model.embed_tokens.weight)"
    ],
    bare("./A", "./B", more="parameters: {weight: [1, 0]}"): [
        "models (line 2): linear: the weights 0, 0 sum to zero, so they cannot be normalized "
        "(9 tensors, the first is model.layers.3.input_layernorm.weight)"
    ],
    method("slerp", "./A", "./B", more="base_model: ./A\nparameters: {t: half}"): [
        "parameters.t (line 6): 'half' is not a number"
    ],
    method("slerp", "./A", "./B", more="base_model: ./A\nparameters: {t: 45%}"): [
        "parameters.t (line 6): '45%' is not a number (percent? use 0.45)"
    ],
    method("ties", "./A", more="base_model: ./base\nparameters: {weight: 1, density: 53}"): [
        "parameters.density (line 5): 53 is outside the allowed range, 0 to 1 (percent? use 0.53)"
    ],
    method("ties", "./A", more="base_model: ./base\nparameters: {weight: 1, density: -0.5}"): [
        "parameters.density (line 5): -0.5 is outside the allowed range, 0 to 1"
    ],
    # filters
    method(
        "slerp",
        "./A",
        "./B",
        more="base_model: ./A\nparameters:\n  t:\n    - {filter: self_atn, value: 0}\n"
        "    - {filter: zzz, value: 1}\n    - value: 0.5",
    ): [
        "parameters.t[0] (line 8): filter 'self_atn' matched 0 of 31 tensors; "
        "did you mean self_attn?",
        "parameters.t[1] (line 9): filter 'zzz' matched 0 of 31 tensors",
    ],
    # patterns
    GOOD + "include: ['*mlp*', self_atn, mlp]\nexclude:\n  - 're:norm$'\n": [
        "include[1] (line 5): 'self_atn' matched 0 of 31 tensors; did you mean '*self_attn*'?",
        "include[2] (line 5): 'mlp' matched 0 of 31 tensors; did you mean '*mlp*'?",
        "exclude[0] (line 7): 're:norm$' matched 0 of 31 tensors",
    ],
    GOOD + "exclude: '*'\n": ["exclude (line 5): leaves no tensor to merge"],
    # how many models
    method("slerp", "./A", "./B", more="base_model: ./base\nparameters: {t: 0.5}"): [
        "models (line 2): slerp with t walks between two models, from the base to the other, and "
        "the base ./base is neither of them: ./A, ./B. Name one of the two, as in base_model: ./A."
    ],
    method("slerp", "./A", "./B", "./base", more="base_model: ./A\nparameters: {t: 0.5}"): [
        "models (line 2): slerp takes two models, found 3: ./A, ./B, ./base. "
        "For three or more models use linear or task_arithmetic."
    ],
    method("slerp", "./A", "./B", more="parameters: {t: 0.5}"): [
        "models (line 2): slerp with t walks from the base_model to the other of ./A and ./B. "
        "Say where it begins, as in base_model: ./A."
    ],
    method("slerp", "./A", "./B", more="base_model: ./A"): [
        "models (line 2): slerp: there is no t, and no weight for each of the two models "
        "(31 tensors, the first is model.embed_tokens.weight)"
    ],
    method("slerp", "./B", more="base_model: ./A\nparameters: {t: {filter: mlp, value: 1}}"): [
        "models (line 2): slerp: there is no t, and no weight for each of the two models "
        "(23 tensors, the first is model.embed_tokens.weight). "
        "Add a last entry without a filter to t: {value: ...}."
    ],
    method(
        "slerp",
        "./B",
        more="base_model: ./A\nparameters: {t: [{filter: MLP, value: 1}, {value: 0}]}",
    ): ["parameters.t[0] (line 5): filter 'MLP' matched 0 of 31 tensors; did you mean mlp?"],
    method("nuslerp", "./A", more="parameters: {weight: 1}"): [
        "models (line 2): nuslerp takes exactly 2 models, found 1: ./A"
    ],
    method("nuslerp", "./A", "./B", more="base_model: ./A\nparameters: {weight: 1}"): [
        "models (line 2): nuslerp takes exactly 2 models besides the base, found 1: ./B; "
        "the base is ./A. Without base_model the two models themselves are blended."
    ],
    method("task_arithmetic", "./A", "./B", more="parameters: {weight: 1}"): [
        "merge_method (line 1): task_arithmetic needs a base_model. "
        "Add base_model: <the model the others were fine-tuned from>."
    ],
    slices(
        "task_arithmetic",
        "./A, layer_range: [0, 4], parameters: {weight: 1}",
        more="base_model: ./base",
    ): [
        "slices[0] (line 3): task_arithmetic needs the base ./base among the sources of every "
        "slice; found ./A. Add it as a source."
    ],
    slices(
        "task_arithmetic",
        "./A, layer_range: [0, 4], parameters: {weight: 1}",
        more="base_model: ./A",
    ).replace("sources", "base_model: ./base\n    sources"): [
        "slices[0] (line 3): task_arithmetic needs the base ./base among the sources of every "
        "slice; found ./A. Add it as a source."
    ],
    method("passthrough", "./A", "./B"): [
        "models (line 2): passthrough takes exactly 1 model, found 2: ./A, ./B. "
        "To stack layers of several models, write slices."
    ],
    # layers
    slices("passthrough", "./A, layer_range: [0, 4]", "./B, layer_range: [2, 9]"): [
        "slices[1].sources[0] (line 4): layer_range [2,9] but ./B has 4 layers (0-3); "
        "end is exclusive"
    ],
    slices("passthrough", "./A, layer_range: [3, 1]", "./B, layer_range: [0, -1]"): [
        "slices[0].sources[0].layer_range (line 3): [3, 1] runs backwards; "
        "the start comes first and the end is exclusive",
        "slices[1].sources[0].layer_range (line 4): [0, -1] holds a negative number; layers count "
        "from 0 and the end is exclusive; write [0, null] to end with the last layer",
    ],
    slices("passthrough", "./A, layer_range: [3, 3]", "./B, layer_range: [2, 2]"): [
        "slices[0] (line 3): the slices hold no layers at all. Give one a longer layer_range."
    ],
    slices("linear", "./A, layer_range: [0, 2]}, {model: ./B, layer_range: [0, 3]"): [
        "slices[0] (line 3): its sources must span equally many layers: "
        "./A [0,2] = 2, ./B [0,3] = 3"
    ],
    # tokenizers
    GOOD + "tokenizer_source: ./base\n": [
        f"{where}: ./{name} has no tokenizer files, so its rows cannot be matched with tokens. "
        "Put its tokenizer into its folder, or remove the tokenizer setting."
        for where, name in (
            ("models[0] (line 3)", "A"),
            ("models[1] (line 4)", "B"),
            ("tokenizer_source (line 5)", "base"),
        )
    ],
}


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_recipe_that_cannot_be_merged(number, models):
    recipe, messages = list(RECIPES.items())[number]
    assert refused(recipe) == [
        m.replace("methods are M", f"methods are {known_methods()}") for m in messages
    ]


def test_five_mistakes_of_a_recipe_are_told_at_once_in_its_order(models):
    recipe = """\
models:
  - model: ./A
    parameters:
    weight: 0.5
  - {modle: ./B, parameters: {weight: half}}
merge_method: lineer
dtype: bfloat
out_dtpe: float32
"""
    assert refused(recipe) == [
        "models[0].weight (line 4): belongs under parameters: (indent it)",
        "models[1].modle (line 5): unknown key, did you mean model?",
        "models[1].parameters.weight (line 5): 'half' is not a number",
        f"merge_method (line 6): unknown method 'lineer', did you mean linear? "
        f"The methods are {known_methods()}",
        "dtype (line 7): unknown dtype 'bfloat', did you mean bfloat16?",
        "out_dtpe (line 8): unknown key, did you mean out_dtype?",
    ]


# --- what is only a warning ----------------------------------------------------------------------

WARNINGS = {
    GOOD + "parameters: {normalise: true, qqq: 1}\n": [
        "parameters.normalise (line 5): no method knows the parameter normalise, "
        "did you mean normalize?",
        "parameters.qqq (line 5): no method knows the parameter qqq; linear reads weight, "
        "normalize",
    ],
    GOOD + "parameters: {lambda: 1}\n": [
        "parameters.lambda (line 5): linear does not read lambda; it reads weight, normalize"
    ],
    slices(
        "linear",
        "./A, layer_range: [0, 4]}, {model: ./A, layer_range: [0, 4]",
        more="parameters: {weight: 1}",
    ): [
        "slices[0].sources[1] (line 3): ./A is also slices[0].sources[0] with the same layers; "
        "both entries count"
    ],
    linear("./A/model.safetensors", "./B"): [
        "./A/model.safetensors: has no config.json, so the output will have none. "
        "To take that of ./B, list it first."
    ],
    linear("./A", "./A"): ["models[1].model (line 4): ./A is also models[0]; both entries count"],
}


@pytest.mark.parametrize("number", range(len(WARNINGS)))
def test_a_warning_does_not_stop_a_merge(number, models):
    recipe, messages = list(WARNINGS.items())[number]
    done = merge(recipe)
    assert (done.code, done.lines[:-1]) == (0, [f"warning: {m}" for m in messages])


def test_the_published_wrong_recipe_loads_when_lenient(models):
    done = merge(SHAPE_10, "--lenient")
    assert (done.code, done.lines[:-1]) == (
        0,
        [
            "warning: select_topk (line 2): belongs under parameters: "
            "(write parameters: {select_topk: ...}); it is ignored",
            "warning: dype (line 7): unknown key, did you mean dtype?; it is ignored",
        ],
    )


def test_a_pattern_without_tensors_is_a_warning_when_lenient(models):
    done = merge(GOOD + "exclude: zzz\n", "--lenient")
    assert (done.code, done.lines[:-1]) == (
        0,
        ["warning: exclude[0] (line 5): 'zzz' matched 0 of 31 tensors"],
    )


def test_a_filter_without_tensors_is_a_warning_when_lenient(models):
    more = "base_model: ./A\nparameters: {t: [{filter: atn, value: 0}, {value: 1}]}"
    done = merge(method("slerp", "./A", "./B", more=more), "--lenient")
    assert (done.code, done.lines[:-1]) == (
        0,
        ["warning: parameters.t[0] (line 6): filter 'atn' matched 0 of 31 tensors"],
    )

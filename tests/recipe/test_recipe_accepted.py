"""Ways of writing that are accepted, and what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from recipe_words import METHODS

from mergeloom.errors import Problems
from mergeloom.recipe import load_recipe
from mergeloom.types import Conditional, ModelReference, Recipe, TokenizerSettings, TokenSetting

GOOD = "models: [{model: A, parameters: {weight: 1}}]\nmerge_method: linear\n"
TASK = "merge_method: dare_ties\nbase_model: base\nmodels: [{model: A, parameters: {weight: 1}}]\n"


def load(source) -> Recipe:
    """Load a recipe that gives no warning."""
    problems = Problems()
    recipe = load_recipe(source, methods=METHODS, problems=problems)
    assert [str(w) for w in problems.warnings] == []
    return recipe


DTYPES = {
    "BF16": "bfloat16 bf16 torch.bfloat16 BFloat16",
    "F16": "float16 fp16 half torch.half F16",
    "F32": "float32 fp32 f32 float torch.float32",
    "F64": "float64 fp64 double torch.double",
}


@pytest.mark.parametrize("written", " ".join(DTYPES.values()).split())
def test_dtypes(written):
    recipe = load(GOOD + f"dtype: {written}\nout_dtype: {written}\n")
    assert written in DTYPES[recipe.dtype].split()
    assert recipe.out_dtype == recipe.dtype


VALUES = {
    'weight: "0.5"': 0.5,
    "weight: 1e-5": 1e-5,
    "weight: true": 1.0,
    "weight: [1, 0.5, '0.25']": (1.0, 0.5, 0.25),
    "weight: {value: 2}": 2.0,
    "weight: [{value: [1, 0]}]": (1.0, 0.0),
    "normalize: 'false'": False,
    "normalize: 1.0": True,
    "normalize: 0": False,
    "normalize: off": False,
    "normalize: 'YES'": True,
    "normalize: [true, 0, 'on']": (True, False, True),
    "rescale: true": "true",
    "rescale: off": "false",
    "rescale: 1.0": "true",
    "rescale: Density": "density",
}


@pytest.mark.parametrize("setting", VALUES)
def test_values_get_their_declared_type(setting):
    recipe = load(TASK + f"parameters:\n  {setting}\n")
    (entries,) = recipe.parameters.values()
    assert repr(entries) == repr((Conditional(None, VALUES[setting]),))


def test_int_parameters_become_whole():
    recipe = load("merge_method: karcher\nmodels: [A]\nparameters: {max_iter: [10.0, '20']}\n")
    assert repr(recipe.parameters["max_iter"][0].value) == "(10, 20)"


def test_without_methods_only_numbers_are_converted():
    recipe = load_recipe(GOOD + "parameters: {a: '0.5', b: 'no', c: 1e-3, d: true}\n")
    values = {name: setting[0].value for name, setting in recipe.parameters.items()}
    assert repr(values) == repr({"a": 0.5, "b": "no", "c": 0.001, "d": True})


def test_empty_values_count_as_absent():
    recipe = load(
        "models: [{model: A, parameters: }]\nslices: []\nmodules:\nmerge_method: linear\n"
        "parameters: {weight: []}\ndtype:\ntokenizer: ~\ntokenizer_source: union\nname:\n"
        "base_model:\ninput_model_parameters:\ninclude: ~\nexclude: []\nchat_template: null\n"
    )
    assert recipe.parameters == recipe.modules[0].inputs[0].parameters == {}
    assert recipe.dtype is recipe.name is recipe.base_model is recipe.chat_template is None
    assert recipe.include == recipe.exclude == ()
    assert recipe.tokenizer == TokenizerSettings("union", where="tokenizer_source")


def test_tokenizer_spellings():
    assert load(GOOD).tokenizer is None
    assert load(GOOD + "tokenizer: {}\n").tokenizer == TokenizerSettings("union")
    assert load(GOOD + "tokenizer: {source: ~}\n").tokenizer == TokenizerSettings("union")
    old = load(GOOD + "tokenizer_source: model:org/A\n").tokenizer
    assert old == TokenizerSettings(ModelReference("org/A"), where="tokenizer_source")
    named = f"name: bases\n{GOOD}---\n{GOOD}tokenizer_source: bases\n"  # not "base" misspelt
    assert load(named).tokenizer.source == ModelReference("bases")
    block = load(
        GOOD + "tokenizer:\n  source: {model: A, lora: L}\n  union_mode: vocab_only\n"
        "  missing: mean\n  tokens: {on: , 1: {force: 'yes', special: true}, '<<': {source: A}}\n"
    ).tokenizer
    assert block.source == ModelReference("A", lora="L")
    assert block.tokens == {
        "on": TokenSetting(),
        "1": TokenSetting(force=True, special=True),
        "<<": TokenSetting("model", ModelReference("A")),
    }
    assert (block.union_mode, block.missing) == ("vocab_only", "mean")


def test_patterns_and_chat_template():
    recipe = load(GOOD + "include: '*.mlp.*'\nexclude: ['re:norm$', lm_head.weight]\n")
    assert recipe.include == ("*.mlp.*",)
    assert recipe.exclude == ("re:norm$", "lm_head.weight")
    assert load(GOOD + "chat_template: {model: org/A}").chat_template == ModelReference("org/A")
    assert load(GOOD + "chat_template: auto\n").chat_template == "auto"


def test_layer_ranges_without_an_end():
    recipe = load(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: A, layer_range: [0, null]}]\n"
        "- sources: [{model: A, layer_range: [4]}]\n  base_model: B@v1\n"
        "  parameters: {scale: 1}\n"
    )
    first, second = recipe.modules[0].slices
    assert [first.inputs[0].layer_range, second.inputs[0].layer_range] == [(0, None), (4, None)]
    assert second.base_model == ModelReference("B", "v1")
    assert second.parameters == {"scale": (Conditional(None, 1.0),)}
    assert recipe.models() == (ModelReference("A"), ModelReference("B", "v1"))


def test_the_same_model_twice_in_a_slice_is_two_inputs():
    source = "{model: A, layer_range: [%d, %d]}"
    recipe = load(
        f"merge_method: linear\nparameters: {{weight: 1}}\n"
        f"slices: [{{sources: [{source % (0, 1)}, {source % (1, 2)}]}}]\n"
    )
    assert len(recipe.modules[0].slices[0].inputs) == 2


def test_settings_by_model():
    recipe = load(GOOD + "input_model_parameters: {A: {weight: 2}}\n")
    assert recipe.model_parameters == {ModelReference("A"): {"weight": (Conditional(None, 2.0),)}}


def test_dates_and_booleans_are_text_where_text_is_wanted():
    recipe = load(GOOD + "name: 2024-01-01\nbase_model: {path: A, revision: 2024-01-01}\n")
    assert recipe.name == "2024-01-01"
    assert recipe.base_model.revision == "2024-01-01"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    text = (GOOD + "name: größe\ndtype: bf16\n").replace("\n", newline)
    path = tmp_path / "recipe"
    path.write_bytes(text.encode(encoding))
    recipe = load(path)
    assert load(str(path)) == recipe
    assert (recipe.name, recipe.lines["dtype"]) == ("größe", 4)
    if encoding != "utf-16":
        assert recipe.text.encode() == path.read_bytes()


def test_text_and_mapping_give_the_same_recipe():
    data = yaml.safe_load(GOOD)
    shared = data["models"][0]
    data["models"] = [shared, {"model": Path("org/B"), "parameters": {"weight": (1, 2)}}]
    recipe = load(data)
    assert recipe.lines == {}
    assert recipe.modules[0].inputs[1].model == ModelReference("org/B")
    again = load(recipe.text)
    assert again.modules == recipe.modules
    assert load(yaml.safe_load(GOOD)).text == yaml.safe_dump(yaml.safe_load(GOOD), sort_keys=False)


def test_an_alias_in_a_list_has_its_own_line():
    recipe = load("m: &m A\nmodels:\n  - *m\n  - B\nmerge_method: karcher\n")
    assert recipe.lines["models[0]"] == 3
    assert recipe.line("models[0].model") == 3


def test_merge_keys_do_not_override():
    recipe = load(
        "common: &c {model: A, parameters: {weight: 1}}\nmore: &d {model: B}\n"
        "models:\n  - {<<: [*d, *c]}\n  - model: C\n    <<: *c\nmerge_method: linear\n"
    )
    first, second = recipe.modules[0].inputs
    assert (first.model.path, second.model.path) == ("B", "C")
    assert first.parameters == second.parameters == {"weight": (Conditional(None, 1.0),)}
    assert recipe.lines["models[1].model"] == 5
    assert recipe.lines["models[1].parameters"] == 1


def test_a_chain_runs_in_the_order_of_its_needs():
    text = (
        "models: [second, {model: third@v1}]\nmerge_method: karcher\n"
        "---\nname: second\nmodels: [third+lora]\nmerge_method: karcher\n"
        "tokenizer: {tokens: {x: {source: fourth}}}\n"
        "---\nname: third\nmodels: [A]\nmerge_method: karcher\n"
        "---\nname: fourth\nmodels: [fourth]\nmerge_method: karcher\n"
    )
    recipe = load(text)
    assert recipe.name is None
    assert [one.name for one in recipe.chain] == ["third", "fourth", "second"]
    assert all(one.chain == () for one in recipe.chain)
    assert recipe.chain[2].text == (
        "name: second\nmodels: [third+lora]\nmerge_method: karcher\n"
        "tokenizer: {tokens: {x: {source: fourth}}}\n"
    )
    assert recipe.chain[2].lines["merge_method"] == 6


def test_only_references_join_documents():
    text = (
        "name: linear\nmodels: [A]\nmerge_method: karcher\n"
        "---\nname: union\nmodels: [linear]\nmerge_method: karcher\n"
        "---\nname: out\nmodels: [B]\nmerge_method: linear\nparameters: {weight: 1}\n"
        "tokenizer_source: union\n"
    )
    problems = Problems()
    recipe = load_recipe(text, methods=METHODS, problems=problems)
    assert recipe.name == "out"
    assert recipe.chain == ()
    assert [w.message for w in problems.warnings] == [
        "nothing uses document 'linear'; it is not computed",
        "nothing uses document 'union'; it is not computed",
    ]

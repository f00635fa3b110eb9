"""The ten shapes that recipes take in the wild, and their exact normal form."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_words import METHODS

from mergeloom.errors import Problems, RecipeError
from mergeloom.recipe import load_recipe
from mergeloom.types import (
    Conditional,
    Input,
    ModelReference,
    Module,
    Recipe,
    Slice,
    TokenizerSettings,
    TokenSetting,
)

SHAPES = Path(__file__).parent / "shapes"
A, B, BASE = ModelReference("org/A"), ModelReference("org/B"), ModelReference("org/Base")


def load(name: str, **options) -> tuple[Recipe, list[str]]:
    problems = Problems()
    path = next(SHAPES.glob(f"{name}_*.yml"))
    recipe = load_recipe(path, methods=METHODS, problems=problems, **options)
    return recipe, [str(w) for w in problems.warnings]


def all_(value):
    return (Conditional(None, value),)


def test_gradient_slerp():
    recipe, warnings = load("01")
    here = "slices[0]"
    inputs = (
        Input(A, (0, 32), {}, f"{here}.sources[0]"),
        Input(B, (0, 32), {}, f"{here}.sources[1]"),
    )
    assert warnings == []
    assert recipe.modules == (Module(None, (), (Slice(inputs, None, {}, here),)),)
    assert recipe.parameters == {
        "t": (
            Conditional("self_attn", (0, 0.5, 0.3, 0.7, 1)),
            Conditional("mlp", (1, 0.5, 0.7, 0.3, 0)),
            Conditional(None, 0.5),
        )
    }
    assert (recipe.merge_method, recipe.base_model, recipe.dtype) == ("slerp", A, "BF16")
    assert recipe.tokenizer == TokenizerSettings("union", where="tokenizer_source")
    assert recipe.lines["parameters.t[1].value"] == 10
    assert recipe.line("slices[0].sources[1].layer_range[1]") == 4
    assert recipe.text == (SHAPES / "01_slerp_gradient.yml").read_text()
    assert recipe.models() == (A, B)


def test_windows_paths_and_mixed_numbers():
    recipe, warnings = load("02")
    base = ModelReference("G:\\9B\\base")
    assert warnings == []
    assert recipe.base_model == base
    first, second = recipe.modules[0].inputs
    assert first == Input(base, None, {}, "models[0]")
    assert second.model == ModelReference("D:/My Models/B")
    weights = (1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.05, 0.01)
    assert second.parameters == {"weight": all_(weights), "density": all_((1.0, 0.7, 0.1))}
    assert repr(recipe.parameters) == repr(
        {
            "normalize": all_(False),
            "int8_mask": all_(True),
            "rescale": all_("false"),
            "lambda": all_(1.0),
        }
    )
    assert recipe.chat_template == "alpaca"


def test_block_expansion():
    recipe, warnings = load("03")
    slices = recipe.modules[0].slices
    assert warnings == []
    assert [s.inputs[0].layer_range for s in slices] == [(0, 4), (3, 4), (4, 8)]
    assert slices[1].inputs[0].parameters == {
        "scale": (
            Conditional("o_proj", 0.0),
            Conditional("down_proj", 0.0),
            Conditional(None, 1.0),
        )
    }
    assert recipe.base_model is None


def test_anchors_and_merge_keys():
    recipe, warnings = load("04")
    first, second = (s.inputs[0] for s in recipe.modules[0].slices)
    scale = (
        Conditional("q_proj", 0.7071),
        Conditional("k_proj", 0.7071),
        Conditional(None, 1.0),
    )
    assert warnings == []
    assert first == Input(A, (0, 10), {"scale": scale}, "slices[0].sources[0]")
    assert second == Input(A, (5, 32), {}, "slices[1].sources[0]")


def test_linear_with_a_dummy_and_an_empty_slice():
    recipe, warnings = load("05")
    slices = recipe.modules[0].slices
    assert warnings == []
    assert [len(s.inputs) for s in slices] == [2, 1, 1, 1]
    assert slices[0].inputs[1].parameters == {"weight": all_(0.0)}
    assert slices[3].inputs[0].layer_range == (80, 80)
    assert recipe.parameters == {"weight": all_(1.0)}
    assert recipe.dtype == "F16"


def test_adapters():
    recipe, warnings = load("06")
    assert warnings == []
    assert [i.model for i in recipe.modules[0].inputs] == [
        ModelReference("org/Base", "abc123", "org/lora-one", "v2"),
        ModelReference("org/Base", lora="user/3aff0ea7-4262-4abb-97b1-1879f340d32e"),
        ModelReference("org/Base", lora="../models/my-lora"),
    ]
    assert recipe.base_model == ModelReference("org/Base", lora="org/abliteration-LoRA")
    assert (recipe.dtype, recipe.out_dtype) == ("F32", "BF16")


def test_a_parameter_the_method_does_not_read_is_a_warning():
    recipe, warnings = load("07")
    text = "model_stock does not read weight; it reads filter_wise"
    assert warnings == [
        f"models[0].parameters.weight (line 7): {text}",
        f"models[1].parameters.weight (line 8): {text}",
    ]
    assert recipe.name == "my-merge"
    weight = (Conditional("mlp", (2, 1)), Conditional(None, 1))
    assert recipe.modules[0].inputs[0].parameters == {"weight": weight}
    assert recipe.tokenizer == TokenizerSettings(A, where="tokenizer_source")


def test_chain_of_documents():
    recipe, warnings = load("08")
    whole = (SHAPES / "08_chain.yml").read_text()
    (first,) = recipe.chain
    assert warnings == []
    assert first.name == "First"
    assert repr(first.parameters) == repr({"tol": all_(1e-10), "max_iter": all_(1200)})
    assert recipe.text == whole
    assert whole.startswith(f"{first.text}---\n")
    assert recipe.base_model == ModelReference("org/C")
    (module,) = recipe.modules
    assert module == Module(
        "default",
        (),
        (
            Slice(
                (
                    Input(
                        ModelReference("First"),
                        (0, 40),
                        {
                            "density": all_(0.5),
                            "epsilon": all_(0.4),
                            "weight": all_((0.9, 0.2, 0.95)),
                        },
                        "modules.default.slices[0].sources[0]",
                    ),
                    Input(
                        ModelReference("org/C"), (0, 40), {}, "modules.default.slices[0].sources[1]"
                    ),
                ),
                None,
                {},
                "modules.default.slices[0]",
            ),
        ),
        {},
        "modules.default",
    )
    assert recipe.parameters["normalize"] == all_(True)
    assert recipe.tokenizer == TokenizerSettings("union")
    assert recipe.lines["merge_method"] == 8


def test_tokenizer_block_and_modules():
    recipe, warnings = load("09")
    assert warnings == []
    assert [m.name for m in recipe.modules] == ["text_decoder", "vision_tower"]
    (fine_tune,) = recipe.modules[0].inputs
    assert fine_tune.where == "modules.text_decoder.models[0]"
    assert fine_tune.parameters == {"weight": all_(0.4), "density": all_(0.3)}
    assert recipe.tokenizer == TokenizerSettings(
        "base",
        {
            "<|im_start|>": TokenSetting("model", ModelReference("org/chatml")),
            "<|eot_id|>": TokenSetting("model", ModelReference("org/VLM"), force=True),
            "<|renamed|>": TokenSetting("model_token", ModelReference("org/VLM"), "<|old|>"),
            "<|unused|>": TokenSetting("zero"),
        },
        pad_to_multiple_of=64,
    )
    assert next(iter(recipe.tokenizer.tokens)) == "<|im_start|>"
    assert recipe.chat_template == "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("methods", [METHODS, None])
def test_the_published_wrong_one_fails_with_both_suggestions(methods):
    path = SHAPES / "10_wrong.yml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, methods=methods)
    assert [str(p) for p in caught.value.problems] == [
        "select_topk (line 2): belongs under parameters: (write parameters: {select_topk: ...})",
        "dype (line 6): unknown key, did you mean dtype?",
    ]


def test_the_published_wrong_one_loads_when_lenient():
    recipe, warnings = load("10", lenient=True)
    assert warnings == [
        "select_topk (line 2): belongs under parameters: "
        "(write parameters: {select_topk: ...}); it is ignored",
        "dype (line 6): unknown key, did you mean dtype?; it is ignored",
    ]
    assert recipe.parameters == {}
    assert recipe.dtype is None
    assert recipe.out_dtype == "BF16"

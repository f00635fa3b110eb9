"""Which tensors of two checkpoints are the same, whatever they are called."""

from __future__ import annotations

import pytest
from shapes import BERT, HEAD, MODELS, VISION, H, V, layers, text

from mergeloom.architecture import Alignment, align, understand
from mergeloom.architecture.stacks import Shapes


def named(found: Alignment, name: str) -> str | None:
    source = found.find(name)
    if source is None:
        return None
    assert source.is_plain
    return source.names[0]


def meets(ours: Shapes, theirs: Shapes, our_config: dict, their_config: dict) -> dict[str, str]:
    """The donor's names → theirs, for all that have a counterpart, both ways the same."""
    one, two = understand(ours, our_config), understand(theirs, their_config)
    there, back = align(one, two), align(two, one)
    found = {name: named(there, name) for name in ours}
    matched = {a: b for a, b in found.items() if b is not None}
    assert {named(back, b): b for b in matched.values()} == matched
    return matched


def test_a_prefix_or_none():
    shapes, bare = MODELS["bert"][0], MODELS["bert_bare"][0]
    config = MODELS["bert"][1]
    assert meets(bare, shapes, config, config) == {n: f"bert.{n}" for n in bare}
    assert meets(shapes, bare, config, config) == {f"bert.{n}": n for n in bare}


LLAVA = MODELS["llava"]  # model.language_model., model.vision_tower.vision_model., lm_head
OLD = {  # language_model.model., language_model.lm_head, vision_tower.vision_model.
    n: n.replace("model.language_model.", "language_model.model.")
    .replace("lm_head", "language_model.lm_head")
    .removeprefix("model.")
    for n in LLAVA[0]
}
SHORT = {n: o.replace("vision_model.", "") for n, o in OLD.items()}
TEXT = {n: n.replace("language_model.", "") for n in LLAVA[0]
        if "language_model" in n or n == "lm_head.weight"}  # fmt: skip


@pytest.mark.parametrize("spelling", [OLD, SHORT, TEXT], ids=["old", "short", "text alone"])
def test_vision_language_models_of_several_times(spelling):
    shapes, config = LLAVA
    other = {spelling[n]: s for n, s in shapes.items() if n in spelling}
    theirs = config if spelling is not TEXT else config["text_config"]
    assert meets(shapes, other, config, theirs) == spelling
    assert meets(other, shapes, theirs, config) == {b: a for a, b in spelling.items()}


def test_a_text_model_whose_layers_are_called_as_the_text_of_the_other():
    shapes, config = MODELS["qwen2_vl"]
    own = {n: s for n, s in shapes.items() if not n.startswith("visual")}
    found = meets(shapes, own, config, {"num_hidden_layers": 3, "vocab_size": V})
    assert found == {n: n for n in own}


def test_two_stacks_that_are_alike_are_told_apart_by_their_shapes_or_not_at_all():
    """CLIP: text and vision have the same names inside of their layers."""
    sizes = {"text_model": 8, "vision_model": 6}
    clip = {f"{part}.encoder.layers.{i}.mlp.fc1.weight": (size, size)
            for part, size in sizes.items() for i in range(2)}  # fmt: skip
    bare = {n.removeprefix("vision_model."): s for n, s in clip.items() if "vision" in n}
    assert meets(clip, bare, {}, {}) == {f"vision_model.{n}": n for n in bare}
    alike = dict.fromkeys(clip, (8, 8))
    either = {n.removeprefix("text_model."): (8, 8) for n in alike if "text" in n}
    assert set(meets(either, alike, {}, {}).values()) <= {n for n in alike if "text" in n}


def test_what_only_one_has_stays_alone():
    assert align(understand(*MODELS["bert_bare"]), understand(*MODELS["llama"])).stacks == {}
    found = align(understand(*MODELS["bert"]), understand(*MODELS["bert_bare"]))
    assert found.find("cls.predictions.bias") is None
    twice = {**text("model", 2), **HEAD, "extra.lm_head.weight": (V, H)}
    other = {**text("model", 2), "language_model.lm_head.weight": (V, H)}
    assert align(understand(other, {}), understand(twice, {})).find(
        "language_model.lm_head.weight"
    ) is not None  # fmt: skip
    two_fit = {**text("model", 2), "a.lm_head.weight": (V, H), "b.lm_head.weight": (V, H)}
    one = {**text("model", 2), **HEAD}
    assert align(understand(one, {}), understand(two_fit, {})).find("lm_head.weight") is None


def test_back_writes_a_head_where_the_donor_would():
    donor = {**text("language_model.model", 2),
             **layers("vision_tower.encoder.layers", 2, VISION)}  # fmt: skip
    other = {**text("model", 2), **HEAD}
    found = align(understand(donor, {"vocab_size": V}), understand(other, {"vocab_size": V}))
    assert found.back("lm_head.weight") == "language_model.lm_head.weight"
    newer = {n.replace("language_model.model", "model.language_model"): s for n, s in donor.items()}
    found = align(understand(newer, {"vocab_size": V}), understand(other, {"vocab_size": V}))
    assert found.back("lm_head.weight") == "lm_head.weight"


def test_the_words_of_a_layer_are_the_donors():
    name = "block_sparse_moe.experts.{}.w{}.weight"
    experts = {name.format(e, k): (6, 8) for e in range(2) for k in (1, 3)}
    packed = {"mlp.experts.gate_up_proj": (2, 12, 8)}
    one = understand(layers("model.layers", 2, {**experts, **BERT}), {})
    two = understand(layers("layers", 3, {**packed, **BERT}), {})
    assert align(one, two).suffixes("model.layers", 2) == (*experts, *BERT)
    assert align(two, one).suffixes("layers", 1) == (*packed, *BERT)
    # A layer that the donor has not got: slices may ask for it.
    found = align(one, two).find("model.layers.2.block_sparse_moe.experts.1.w3.weight")
    assert found is not None
    assert (found.names, found.shape) == (("layers.2.mlp.experts.gate_up_proj",), (6, 8))
    assert align(one, two).find("model.layers.3.block_sparse_moe.experts.1.w3.weight") is None

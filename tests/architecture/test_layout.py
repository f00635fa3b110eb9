"""What is every tensor? For many kinds of models, from names, shapes and config.json alone."""

from __future__ import annotations

import pytest
from shapes import BERT, MODELS, H, V, layers

from mergeloom.architecture import is_buffer, understand
from mergeloom.architecture.modules import module_names, module_tensors

# Model → (main stack, its count key), other stacks, embeddings, heads.
FACTS = {
    "llama": (("model.layers", 3, "num_hidden_layers"), {}, ["model.embed_tokens.weight"],
              ["lm_head.weight"]),
    "llama_tied": (("model.layers", 3, "num_hidden_layers"), {}, ["model.embed_tokens.weight"], []),
    "gpt2": (("h", 2, "n_layer"), {}, ["wte.weight"], []),
    "gpt2_prefixed": (("transformer.h", 2, "n_layer"), {}, ["transformer.wte.weight"], []),
    "gpt_neox": (("gpt_neox.layers", 3, "num_hidden_layers"), {}, ["gpt_neox.embed_in.weight"],
                 ["embed_out.weight"]),
    "bert": (("bert.encoder.layer", 2, "num_hidden_layers"), {},
             ["bert.embeddings.word_embeddings.weight"], ["cls.predictions.decoder.weight"]),
    "bert_bare": (("encoder.layer", 2, "num_hidden_layers"), {},
                  ["embeddings.word_embeddings.weight"], []),
    "t5": (("decoder.block", 4, "num_decoder_layers"), {"encoder.block": (3, "num_layers")},
           ["shared.weight"], ["lm_head.weight"]),
    "whisper": (("model.decoder.layers", 3, "decoder_layers"),
                {"model.encoder.layers": (2, "encoder_layers")},
                ["model.decoder.embed_tokens.weight"], []),
    "gemma3_vlm": (("language_model.model.layers", 3, "text_config.num_hidden_layers"),
                   {"vision_tower.vision_model.encoder.layers":
                    (2, "vision_config.num_hidden_layers")},
                   ["language_model.model.embed_tokens.weight"], []),
    "llava": (("model.language_model.layers", 3, "text_config.num_hidden_layers"),
              {"model.vision_tower.vision_model.encoder.layers":
               (3, "vision_config.num_hidden_layers")},
              ["model.language_model.embed_tokens.weight"], ["lm_head.weight"]),
    "qwen2_vl": (("model.layers", 3, "num_hidden_layers"),
                 {"visual.blocks": (2, "vision_config.depth")},
                 ["model.embed_tokens.weight"], ["lm_head.weight"]),
    "mixtral": (("model.layers", 2, "num_hidden_layers"), {}, ["model.embed_tokens.weight"],
                ["lm_head.weight"]),
    "deepseek": (("model.layers", 4, "num_hidden_layers"), {}, ["model.embed_tokens.weight"],
                 ["lm_head.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_stacks_embeddings_and_heads(name):
    (prefix, length, key), others, embeddings, heads = FACTS[name]
    layout = understand(*MODELS[name])
    main = layout.main
    assert (main.prefix, main.length, ".".join(main.count_key)) == (prefix, length, key)
    found = {s.prefix: (s.length, ".".join(s.count_key or ())) for s in layout.stacks}
    assert found == {prefix: (length, key), **others}
    assert list(layout.embeddings) == embeddings
    assert list(layout.heads) == heads
    assert main.extra == (1 if name == "deepseek" else 0)


POST = {
    "llama": {"model.norm.weight"},
    "llama_tied": {"model.norm.weight"},
    "gpt2": {"ln_f.weight", "ln_f.bias"},
    "gpt2_prefixed": {"transformer.ln_f.weight"},
    "gpt_neox": {"gpt_neox.final_layer_norm.weight"},
    "bert": {"bert.pooler.dense.weight",
             "cls.predictions.transform.dense.weight"},
    "bert_bare": {"pooler.dense.weight"},
    "t5": {"encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"},
    "whisper": {"model.encoder.layer_norm.weight", "model.decoder.layer_norm.weight"},
    "gemma3_vlm": {"language_model.model.norm.weight",
                   "vision_tower.vision_model.post_layernorm.weight"},
    "llava": {"model.language_model.norm.weight"},
    "qwen2_vl": {"model.norm.weight"},
    "mixtral": {"model.norm.weight"},
    "deepseek": {"model.norm.weight"},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_after_the_layers(name):
    layout = understand(*MODELS[name])
    roles = {tensor: layout.place(tensor).role for tensor in layout.shapes}
    assert {t for t, role in roles.items() if role == "post"} == POST[name]
    for tensor, role in roles.items():
        inside = any(tensor.startswith(f"{s.prefix}.") for s in layout.stacks)
        assert (role == "layer") == inside, tensor


def test_experts_and_sublayers_belong_to_their_layer():
    mixtral = understand(*MODELS["mixtral"])
    place = mixtral.place("model.layers.1.block_sparse_moe.experts.0.w2.weight")
    assert (place.index, place.suffix) == (1, "block_sparse_moe.experts.0.w2.weight")
    t5 = understand(*MODELS["t5"])
    assert t5.place("decoder.block.2.layer.1.layer_norm.weight").index == 2


@pytest.mark.parametrize(("name", "buffers"), [
    ("gpt2", {"h.0.attn.bias", "h.1.attn.bias"}),
    ("gpt_neox", {f"gpt_neox.layers.{i}.attention.{s}" for i in range(3)
                  for s in ("bias", "rotary_emb.inv_freq")}),
    ("llama", set()), ("bert", set()), ("t5", set()), ("mixtral", set()),
])  # fmt: skip
def test_constant_buffers(name, buffers):
    assert {tensor for tensor in MODELS[name][0] if is_buffer(tensor)} == buffers


MODULES = {
    "llama": {"text"},
    "t5": {"encoder", "decoder", "shared"},
    "whisper": {"encoder", "decoder"},
    "gemma3_vlm": {"text", "vision", "projector"},
    "llava": {"text", "vision", "projector"},
    "qwen2_vl": {"text", "vision"},
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_split_the_model(name):
    layout = understand(*MODELS[name])
    assert {m for m in module_names(layout) if m != "shared"} == MODULES[name] - {"shared"}
    parts = [module_tensors(layout, m) for m in module_names(layout)]
    assert sorted(t for part in parts for t in part) == sorted(layout.shapes)


def test_without_a_config_the_layers_are_still_found():
    for name in ("llama", "gpt2", "bert", "mixtral"):
        layout = understand(MODELS[name][0], None)
        assert layout.main.prefix == FACTS[name][0][0]
        assert list(layout.embeddings) == FACTS[name][2]


def test_padded_vocabularies_are_recognised_by_name():
    shapes = {"model.embed_tokens.weight": (V + 48, H), "lm_head.weight": (V + 48, H),
              **layers("model.layers", 2, BERT)}  # fmt: skip
    layout = understand(shapes, {"num_hidden_layers": 2, "vocab_size": V})
    assert layout.embeddings == ("model.embed_tokens.weight",)
    assert layout.heads == ("lm_head.weight",)


def test_plain_sequentials_and_gaps_are_no_stacks():
    shapes = {"merger.mlp.0.weight": (2, 2), "merger.mlp.2.weight": (2, 2),
              **layers("a", 2, BERT), **layers("b", 3, BERT)}  # fmt: skip
    del shapes["b.1.attention.self.query.weight"], shapes["b.1.output.dense.weight"]
    del shapes["b.1.output.LayerNorm.weight"]
    assert [s.prefix for s in understand(shapes, {}).stacks] == ["a"]

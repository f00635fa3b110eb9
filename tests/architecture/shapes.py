"""Tensor names and shapes of small models of many kinds, as their checkpoints have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import llama_names

Shapes = dict[str, tuple[int, ...]]
H, F, V = 8, 12, 16


def layers(prefix: str, count: int, suffixes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {f"{prefix}.{i}.{s}": shape for i in range(count) for s, shape in suffixes.items()}


BLOCK = {"self_attn.q_proj.weight": (H, H), "mlp.up_proj.weight": (F, H), "norm.weight": (H,)}
BERT = {"attention.self.query.weight": (H, H), "output.dense.weight": (H, F),
        "output.LayerNorm.weight": (H,)}  # fmt: skip
GPT2 = {"ln_1.weight": (H,), "attn.c_attn.weight": (H, 3 * H), "attn.bias": (1, 1, 4, 4)}
NEOX = {"attention.query_key_value.weight": (3 * H, H), "attention.bias": (1, 1, 4, 4),
        "attention.rotary_emb.inv_freq": (2,)}  # fmt: skip
VISION = {"self_attn.q_proj.weight": (6, 6), "layer_norm1.weight": (6,)}
MOE = {
    "self_attn.q_proj.weight": (H, H),
    "block_sparse_moe.gate.weight": (2, H),
    **{f"block_sparse_moe.experts.{e}.w{k}.weight": (F, H) for e in range(2) for k in (1, 2, 3)},
}


def t5_layers(side: str, count: int) -> Shapes:
    block = {"layer.0.SelfAttention.q.weight": (H, H), "layer.1.layer_norm.weight": (H,)}
    made = layers(f"{side}.block", count, block)
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {bias: (32, 2), **made, f"{side}.final_layer_norm.weight": (H,)}


def deepseek(count: int, dense: int, extra: int = 0) -> Shapes:
    made: Shapes = {"model.embed_tokens.weight": (V, H)}
    for i in range(count + extra):
        here = f"model.layers.{i}"
        made[f"{here}.self_attn.q_proj.weight"] = (H, H)
        if i < dense:
            made[f"{here}.mlp.up_proj.weight"] = (F, H)
        else:
            made[f"{here}.mlp.gate.weight"] = (4, H)
            made |= {f"{here}.mlp.experts.{e}.up_proj.weight": (F, H) for e in range(4)}
        if i >= count:
            made |= {f"{here}.eh_proj.weight": (H, 2 * H), f"{here}.embed_tokens.weight": (V, H),
                     f"{here}.shared_head.head.weight": (V, H)}  # fmt: skip
    return made | {"model.norm.weight": (H,), "lm_head.weight": (V, H)}


def text(prefix: str, count: int, block: Mapping[str, tuple[int, ...]] = BLOCK) -> Shapes:
    return {f"{prefix}.embed_tokens.weight": (V, H), **layers(f"{prefix}.layers", count, block),
            f"{prefix}.norm.weight": (H,)}  # fmt: skip


HEAD = {"lm_head.weight": (V, H)}
SIZES = {"vocab_size": V, "hidden_size": H}

MODELS: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "llama": (dict(llama_names(3)), {"num_hidden_layers": 3, **SIZES}),
    "llama_tied": (dict(llama_names(3, head=False)), {"num_hidden_layers": 3, **SIZES}),
    "gpt2": (
        {"wte.weight": (V, H), "wpe.weight": (V, H), **layers("h", 2, GPT2), "ln_f.weight": (H,),
         "ln_f.bias": (H,)},
        {"n_layer": 2, "vocab_size": V, "n_positions": 20},
    ),
    "gpt2_prefixed": (
        {"transformer.wte.weight": (V, H), "transformer.wpe.weight": (20, H),
         **layers("transformer.h", 2, GPT2), "transformer.ln_f.weight": (H,)},
        {"n_layer": 2, "vocab_size": V},
    ),
    "gpt_neox": (
        {"gpt_neox.embed_in.weight": (V, H), **layers("gpt_neox.layers", 3, NEOX),
         "gpt_neox.final_layer_norm.weight": (H,), "embed_out.weight": (V, H)},
        {"num_hidden_layers": 3, "vocab_size": V},
    ),
    "bert": (
        {"bert.embeddings.word_embeddings.weight": (V, H),
         "bert.embeddings.position_embeddings.weight": (20, H),
         "bert.embeddings.token_type_embeddings.weight": (2, H),
         "bert.embeddings.LayerNorm.weight": (H,), **layers("bert.encoder.layer", 2, BERT),
         "bert.pooler.dense.weight": (H, H), "cls.predictions.bias": (V,),
         "cls.predictions.transform.dense.weight": (H, H),
         "cls.predictions.decoder.weight": (V, H)},
        {"num_hidden_layers": 2, "vocab_size": V, "type_vocab_size": 2},
    ),
    "bert_bare": (
        {"embeddings.word_embeddings.weight": (V, H), "embeddings.LayerNorm.weight": (H,),
         **layers("encoder.layer", 2, BERT), "pooler.dense.weight": (H, H)},
        {"num_hidden_layers": 2, "vocab_size": V},
    ),
    "t5": (
        {"shared.weight": (V, H), **t5_layers("encoder", 3), **t5_layers("decoder", 4), **HEAD},
        {"num_layers": 3, "num_decoder_layers": 4, "vocab_size": V, "is_encoder_decoder": True},
    ),
    "whisper": (
        {"model.encoder.conv1.weight": (H, 5, 3), "model.encoder.embed_positions.weight": (20, H),
         **layers("model.encoder.layers", 2, BLOCK), "model.encoder.layer_norm.weight": (H,),
         "model.decoder.embed_tokens.weight": (V, H),
         "model.decoder.embed_positions.weight": (20, H),
         **layers("model.decoder.layers", 3, BLOCK), "model.decoder.layer_norm.weight": (H,)},
        {"encoder_layers": 2, "decoder_layers": 3, "num_hidden_layers": 2, "vocab_size": V},
    ),
    "gemma3_vlm": (
        {**text("language_model.model", 3),
         "multi_modal_projector.mm_input_projection_weight": (6, H),
         "vision_tower.vision_model.embeddings.patch_embedding.weight": (6, 3, 2, 2),
         **layers("vision_tower.vision_model.encoder.layers", 2, VISION),
         "vision_tower.vision_model.post_layernorm.weight": (6,)},
        {"text_config": {"num_hidden_layers": 3, "vocab_size": V},
         "vision_config": {"num_hidden_layers": 2}},
    ),
    "llava": (
        {**text("model.language_model", 3), **HEAD,
         "model.multi_modal_projector.linear_1.weight": (H, 6),
         **layers("model.vision_tower.vision_model.encoder.layers", 3, VISION)},
        {"text_config": {"num_hidden_layers": 3, "vocab_size": V},
         "vision_config": {"num_hidden_layers": 3}},
    ),
    "qwen2_vl": (
        {"visual.patch_embed.proj.weight": (6, 3, 2, 2, 2),
         **layers("visual.blocks", 2, {"attn.qkv.weight": (18, 6), "norm1.weight": (6,)}),
         "visual.merger.mlp.0.weight": (H, H), "visual.merger.mlp.2.weight": (H, H),
         **text("model", 3), **HEAD},
        {"num_hidden_layers": 3, "vocab_size": V, "vision_config": {"depth": 2}},
    ),
    "mixtral": (text("model", 2, MOE) | HEAD, {"num_hidden_layers": 2, **SIZES}),
    "deepseek": (
        deepseek(4, 1, extra=1),
        {"num_hidden_layers": 4, "vocab_size": V, "first_k_dense_replace": 1,
         "num_nextn_predict_layers": 1},
    ),
}  # fmt: skip

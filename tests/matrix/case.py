"""What a row of the matrix is: a class of transformers and the smallest configuration of it.

Hidden size about 32, 128 rows of vocabulary, three or four layers, several experts. Windows are
shorter than the inputs of the tests, so that a layer of the wrong kind computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One model type.

    Args:
        cls: the class of transformers.
        config: arguments of its configuration.
        inputs: what its forward pass is given, see ``inputs.py``.
        stacks: where its layers are in the module tree → the recipe's module whose slices rebuild
            them, None for the plain form of a recipe.
        refused: words of the error when its layers are stacked; the reason stands beside it.
        older: how files of an earlier transformers write the scope that describes the layers: key
            → value, None for a key that they do not have.
    """

    cls: str
    config: Settings
    inputs: str = "text"
    stacks: Mapping[str, str | None] = field(default_factory=lambda: {"model.layers": None})
    refused: str = ""
    older: Settings = field(default_factory=dict)

    def as_older(self, **keys: Any) -> Case:
        """The same model in a config.json of an earlier time."""
        return replace(self, older=keys)


IDS: Settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: Settings = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, **IDS,
}  # fmt: skip
UNTIED: Settings = {**TEXT, "tie_word_embeddings": False}
HEADS: Settings = {**TEXT, "head_dim": 8}
WINDOW: Settings = {"sliding_window": 4}
MAMBA: Settings = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
                   "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 8}  # fmt: skip
ENCODER: Settings = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 64, **IDS,
}  # fmt: skip
EXPERTS: Settings = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TOWER: Settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                   "num_attention_heads": 4, "image_size": 16, "patch_size": 8}  # fmt: skip
HALVES: Settings = {
    "vocab_size": 128, "d_model": 32, "encoder_layers": 3, "decoder_layers": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 2, **IDS,
}  # fmt: skip
T5: Settings = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3,
                "num_decoder_layers": 4, "num_heads": 4, "decoder_start_token_id": 0,
                "relative_attention_num_buckets": 8}  # fmt: skip
PATTERN = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
AT_H: Mapping[str, str | None] = {"transformer.h": None}
BLOCKS: Mapping[str, str | None] = {"encoder.block": "encoder", "decoder.block": "decoder"}

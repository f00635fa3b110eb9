"""Every model type of the matrix by name."""

from __future__ import annotations

from matrix.decoders import DENSE, RECURRENT, SPARSE
from matrix.encoders import ENCODERS, VISION

TYPES = {**DENSE, **SPARSE, **RECURRENT, **ENCODERS, **VISION}
# The lists of layer kinds are younger than these model types: their classes derive them.
OLDER = {
    "qwen2_older": TYPES["qwen2"].as_older(layer_types=None),
    "gemma2_older": TYPES["gemma2"].as_older(layer_types=None),
    "gemma3_text_older": TYPES["gemma3_text"].as_older(
        layer_types=None, _sliding_window_pattern=None, sliding_window_pattern=2
    ),
    "cohere2_older": TYPES["cohere2"].as_older(layer_types=None, sliding_window_pattern=2),
    "exaone4_older": TYPES["exaone4"].as_older(layer_types=None),
    "gpt_oss_older": TYPES["gpt_oss"].as_older(layer_types=None),
    "smollm3_older": TYPES["smollm3"].as_older(layer_types=None, no_rope_layers=None),
    "qwen3_next_older": TYPES["qwen3_next"].as_older(layer_types=None, full_attention_interval=2),
    "lfm2_older": TYPES["lfm2"].as_older(layer_types=None),
    "llama4_older": TYPES["llama4"].as_older(
        layer_types=None, no_rope_layers=None, moe_layers=None, interleave_moe_layer_step=2
    ),
}
CASES = {**TYPES, **OLDER}

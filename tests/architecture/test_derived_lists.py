"""Per-layer lists that classes of transformers derive: written out as the classes have them."""

from __future__ import annotations

import pytest
import transformers

from mergeloom.architecture.layer_config import layer_labels

COUNT = 13
WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5}
CASES: list[tuple[str, str, dict[str, object]]] = [
    ("gemma2", "layer_types", {}),
    ("gemma3_text", "layer_types", {}),
    ("gemma3_text", "layer_types", {"sliding_window_pattern": 3}),
    ("gpt_oss", "layer_types", {}),
    ("cohere2", "layer_types", {}),
    ("exaone4", "layer_types", {"sliding_window": 8, "sliding_window_pattern": 3}),
    ("olmo3", "layer_types", {}),
    ("qwen2", "layer_types", WINDOW),
    ("qwen3", "layer_types", WINDOW),
    ("qwen2_moe", "layer_types", WINDOW),
    ("qwen3_next", "layer_types", {"full_attention_interval": 3}),
    ("qwen3_5_text", "layer_types", {}),
    ("vaultgemma", "layer_types", {}),
    ("afmoe", "layer_types", {"global_attn_every_n_layers": 3}),
    ("exaone_moe", "layer_types", {"sliding_window_pattern": 3}),
    ("modernbert", "layer_types", {"global_attn_every_n_layers": 4}),
    ("cwm", "layer_types", {}),
    ("llama4_text", "no_rope_layers", {}),
    ("llama4_text", "no_rope_layers", {"no_rope_layer_interval": 3}),
    ("smollm3", "no_rope_layers", {"no_rope_layer_interval": 3}),
]


@pytest.mark.parametrize(("kind", "key", "settings"), CASES)
def test_what_a_class_derives_is_derived(kind, key, settings):
    raw = {"model_type": kind, "num_hidden_layers": COUNT, **settings}
    theirs = getattr(transformers.CONFIG_MAPPING[kind](**{**raw, "model_type": kind}), key)
    ours = [dict(layer).get(key) for layer in layer_labels(raw, COUNT)]
    assert ours == [str(value) for value in theirs]

"""Checkpoints of a few hundred kilobytes with the names, layers and files of real ones."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HIDDEN, INNER, HEADS, KEY_HEADS, ROWS = 16, 24, 4, 2, 32
LLAMA_LAYER = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (HIDDEN // HEADS * KEY_HEADS, HIDDEN),
    "self_attn.v_proj.weight": (HIDDEN // HEADS * KEY_HEADS, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate_proj.weight": (INNER, HIDDEN),
    "mlp.up_proj.weight": (INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
}
LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": ROWS,
    "torch_dtype": "bfloat16",
}


def llama(folder: Path, layers: int = 32) -> Path:
    """A Llama with tokenizer and generation settings. Its values depend on the folder's name."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in LLAMA_LAYER.items()}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}
    write(folder, shapes, LLAMA_CONFIG | {"num_hidden_layers": layers})
    (folder / "generation_config.json").write_text('{"do_sample": true}\n')
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {"<|im_start|>": 0, **{f"word{i}": i for i in range(1, ROWS)}},
            "unk_token": "word1",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def vision_language(folder: Path) -> Path:
    """The names of a Llava: a vision tower, a projector and a language model."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.vision_model.embeddings.class_embedding": (HIDDEN,),
        "multi_modal_projector.linear_1.weight": (HIDDEN, HIDDEN),
        "language_model.model.embed_tokens.weight": (ROWS, HIDDEN),
        "language_model.model.norm.weight": (HIDDEN,),
        "language_model.lm_head.weight": (ROWS, HIDDEN),
    }
    for i in range(32):
        own = {f"language_model.model.layers.{i}.{n}": s for n, s in LLAMA_LAYER.items()}
        shapes |= own
    for i in range(3):
        layer = f"vision_tower.vision_model.encoder.layers.{i}"
        shapes[f"{layer}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}.mlp.fc1.weight"] = (INNER, HIDDEN)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": LLAMA_CONFIG | {"num_hidden_layers": 32},
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 3},
    }
    write(folder, shapes, config)
    return folder


def write(folder: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    values = {name: value(folder.name, name, shape) for name, shape in shapes.items()}
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def value(model: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Common values for all models, and a little of this model's own, as fine-tunes have."""
    shared = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    own = torch.Generator().manual_seed(zlib.crc32(f"{model} {name}".encode()))
    common = torch.randn(shape, generator=shared) * 0.2 + (1.0 if len(shape) == 1 else 0.0)
    return (common + torch.randn(shape, generator=own) * 0.05).to(torch.bfloat16)


def raw_files(folder: Path) -> None:
    """A safetensors file and a pickle with the same tensors."""
    folder.mkdir()
    shapes = {"encoder.weight": (4, 6), "decoder.weight": (6, 4), "steps": ()}
    first, second = (
        {name: value(model, name, shape) for name, shape in shapes.items()}
        for model in ("first", "second")
    )
    for state in (first, second):
        state["steps"] = torch.tensor(7)
    save_file(first, folder / "first.safetensors")
    torch.save(second, folder / "second.pt")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder or a file."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if path.suffix == ".pt":
        return dict(torch.load(path, weights_only=True))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}

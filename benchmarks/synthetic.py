"""Make synthetic Llama checkpoints for the benchmarks: a base and three fine-tunes of it.

    python benchmarks/synthetic.py [--size 600M] [--seed 0]
    python benchmarks/synthetic.py --size 70B --sparse

The base is normal noise of the usual initial scale; a fine-tune is the base as stored (bf16) plus
smaller noise, rounded once, so cosines and task vectors look like those of real siblings. Every
value is a function of (seed, tensor, block, model) alone: the files are the same bytes wherever
they are made. With `--sparse` the headers are true and the data is a hole in the file, which is
all that a planner ever reads.

A set lives in `.cache/bench/<name>/{base,ft1,ft2,ft3}/` and is reused when its settings match.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paths import BENCH
from benchmarks.synthetic_files import config_json, write_tokenizer

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # raise it when the values or the files change, so that old caches are not reused
MODELS = ("base", "ft1", "ft2", "ft3")
BLOCK = 1 << 22  # elements drawn at a time: 16 MiB of float32
WEIGHT_SCALE = 0.02
NORM_SCALE = 0.05
# Attention moves more than the rest, so that cosines fall on both sides of slerp's 0.9995.
NOISE = 5e-4
ATTENTION_NOISE = 1e-3


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, named as in its config.json, and the number of shard files."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    shards: int = 2

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor's shape by name, in the order of the model's layers."""
        hidden, inner = self.hidden_size, self.intermediate_size
        kv = hidden // self.num_attention_heads * self.num_key_value_heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden)
        }
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "self_attn.q_proj.weight"] = (hidden, hidden)
            shapes[prefix + "self_attn.k_proj.weight"] = (kv, hidden)
            shapes[prefix + "self_attn.v_proj.weight"] = (kv, hidden)
            shapes[prefix + "self_attn.o_proj.weight"] = (hidden, hidden)
            shapes[prefix + "mlp.gate_proj.weight"] = (inner, hidden)
            shapes[prefix + "mlp.up_proj.weight"] = (inner, hidden)
            shapes[prefix + "mlp.down_proj.weight"] = (hidden, inner)
            shapes[prefix + "input_layernorm.weight"] = (hidden,)
            shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(count(shape) for shape in self.tensors().values())


SIZES = {
    "5M": Shape(128, 344, 8, 4, 2, 8000),
    "60M": Shape(512, 1408, 9, 8, 4, 32000),
    "125M": Shape(768, 2048, 12, 12, 4, 32000),
    "600M": Shape(1536, 4096, 20, 12, 4, 32000),
    "1B": Shape(2048, 5632, 22, 32, 4, 32000),
    "3B": Shape(3072, 8192, 28, 24, 8, 32000),
    "8B": Shape(4096, 14336, 32, 32, 8, 128256, shards=4),
    "70B": Shape(8192, 28672, 80, 64, 8, 128256, shards=30),
}


def count(shape: Sequence[int]) -> int:
    """Return the number of elements of a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def split_shards(shape: Shape) -> list[list[str]]:
    """Deal the tensors, in order, to `shape.shards` files of nearly equal bytes."""
    total, done = shape.parameters(), 0
    files: list[list[str]] = [[] for _ in range(shape.shards)]
    for name, size in shape.tensors().items():
        files[min(done * shape.shards // total, shape.shards - 1)].append(name)
        done += count(size)
    return files


def header_bytes(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, dict[str, int], int]:
    """Return a safetensors header for bf16 tensors, each tensor's file offset, the file's size."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * count(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    starts = {n: len(header) + entries[n]["data_offsets"][0] for n in shapes}
    return header, starts, len(header) + position


def write_headers(folder: Path, shape: Shape) -> dict[str, tuple[Path, int]]:
    """Create the shard files with header and full size and the index; return tensor places."""
    shapes = shape.tensors()
    places: dict[str, tuple[Path, int]] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(split_shards(shape), start=1):
        path = folder / f"model-{number:05d}-of-{shape.shards:05d}.safetensors"
        # The safetensors library itself stores a file's tensors sorted by name.
        header, starts, size = header_bytes({n: shapes[n] for n in sorted(names)})
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)
        for name in names:
            places[name] = (path, starts[name])
            weight_map[name] = path.name
    index = {
        "metadata": {"total_size": 2 * shape.parameters()},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return places


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round finite float32 values to bf16, ties to even, returned as uint16 bits."""
    import numpy as np

    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Widen bf16 bits (uint16) to float32."""
    import numpy as np

    return (bits.astype(np.uint32) << 16).view(np.float32)


def draw(seed: int, tensor: int, block: int, model: int, size: int) -> np.ndarray:
    """Return `size` standard normal float32 values that depend on the arguments alone."""
    import numpy as np

    key = np.random.SeedSequence([seed, tensor, block, model])
    return np.random.Generator(np.random.SFC64(key)).standard_normal(size, dtype=np.float32)


def fill_tensor(
    name: str, number: int, size: int, places: dict[int, dict[str, tuple[Path, int]]], seed: int
) -> None:
    """Write one tensor's values into the files of the models: 0 is the base."""
    norm = name.endswith("norm.weight")
    noise = ATTENTION_NOISE if "self_attn" in name else NOISE
    handles = {model: os.open(place[name][0], os.O_WRONLY) for model, place in places.items()}
    try:
        for block, start in enumerate(range(0, size, BLOCK)):
            length = min(BLOCK, size - start)
            base = draw(seed, number, block, 0, length) * (NORM_SCALE if norm else WEIGHT_SCALE)
            stored = to_bf16(base + 1 if norm else base)
            widened = from_bf16(stored)
            for model, place in places.items():
                values = stored
                if model:
                    values = to_bf16(widened + draw(seed, number, block, model, length) * noise)
                os.pwrite(handles[model], values.tobytes(), place[name][1] + 2 * start)
    finally:
        for handle in handles.values():
            os.close(handle)


def fill(folders: dict[int, Path], shape: Shape, seed: int, *, sparse: bool = False) -> None:
    """Write all files of models (0 is the base) into existing empty folders."""
    places = {}
    for model, folder in folders.items():
        places[model] = write_headers(folder, shape)
        config = config_json({k: v for k, v in asdict(shape).items() if k != "shards"})
        (folder / "config.json").write_text(config)
        write_tokenizer(folder, shape.vocab_size)
    if sparse:
        return
    # numpy draws without the interpreter's lock, so threads use the cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [
            pool.submit(fill_tensor, name, number, count(size), places, seed)
            for number, (name, size) in enumerate(shape.tensors().items())
        ]
        for task in tasks:
            task.result()


def synthetic_set(
    size: str, seed: int = 0, *, sparse: bool = False, tuned: int = 3
) -> dict[str, Path]:
    """Return the folders of base, ft1, ft2, ft3 …, making what is not cached.

    Args:
        size: a key of `SIZES`.
        seed: of every random value.
        sparse: true headers over holes instead of data.
        tuned: how many fine-tunes, at least three; further ones lie beside the set.
    """
    shape = SIZES[size]
    target = BENCH / f"llama-{size}-{'sparse' if sparse else f'seed{seed}'}"
    settings = {"format": FORMAT, "seed": None if sparse else seed, "shape": asdict(shape)}
    marker = target / "settings.json"
    if not (marker.exists() and json.loads(marker.read_text()) == settings):
        print(f"making {target.name}: {len(MODELS)} x {shape.parameters() / 1e6:.0f} M", flush=True)
        shutil.rmtree(target, ignore_errors=True)
        folders = {number: target / model for number, model in enumerate(MODELS)}
        for folder in folders.values():
            folder.mkdir(parents=True)
        fill(folders, shape, seed, sparse=sparse)
        # Written last: a set without it is unfinished and is made anew.
        marker.write_text(json.dumps(settings, indent=2) + "\n")
    more = [f"ft{number}" for number in range(len(MODELS), tuned + 1)]
    for number, model in enumerate(more, len(MODELS)):
        if not (target / model).exists():
            partial = target / f"{model}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill({number: partial}, shape, seed, sparse=sparse)
            partial.rename(target / model)
    return {model: target / model for model in (*MODELS, *more)}


def main() -> None:
    """Make the chosen set and print its folders."""
    parser = argparse.ArgumentParser(description="make synthetic Llama checkpoints")
    parser.add_argument("--size", choices=SIZES, default="600M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse", action="store_true", help="headers only, data as holes")
    arguments = parser.parse_args()
    for folder in synthetic_set(arguments.size, arguments.seed, sparse=arguments.sparse).values():
        print(folder)


if __name__ == "__main__":
    main()

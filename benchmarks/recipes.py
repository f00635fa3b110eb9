"""The recipes that are measured, which input bytes each needs, and what each must give.

One YAML text per method, the same for both tools. The plain formulas are in `verify.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS_LINEAR = """\
merge_method: linear
models:
  - model: {ft1}
    parameters: {{weight: 0.5}}
  - model: {ft2}
    parameters: {{weight: 0.3}}
  - model: {ft3}
    parameters: {{weight: 0.4}}
dtype: bfloat16
"""
SLERP = """\
merge_method: slerp
base_model: {base}
models:
  - model: {base}
  - model: {ft1}
parameters: {{t: 0.4}}
dtype: bfloat16
"""
NUSLERP = """\
merge_method: nuslerp
models:
  - model: {ft1}
    parameters: {{weight: 0.6}}
  - model: {ft2}
    parameters: {{weight: 0.4}}
dtype: bfloat16
"""
TASK_ARITHMETIC = """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {ft1}
    parameters: {{weight: 0.5}}
  - model: {ft2}
    parameters: {{weight: 0.3}}
  - model: {ft3}
    parameters: {{weight: 0.4}}
dtype: bfloat16
"""
# Two halves stacked: the common use of passthrough, and not a plain copy of one file.
PASSTHROUGH = """\
merge_method: passthrough
slices:
  - sources:
      - model: {base}
        layer_range: [0, {half}]
  - sources:
      - model: {ft1}
        layer_range: [{half}, {layers}]
dtype: bfloat16
"""
# For the plan of a large model: gradients and filters, so that every tensor has its own numbers.
PLAN_70B = """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {ft1}
    parameters:
      weight:
        - filter: self_attn
          value: [0.1, 0.5, 0.9, 0.5]
        - filter: mlp
          value: [0.9, 0.5, 0.1]
        - value: 0.5
  - model: {ft2}
    parameters: {{weight: [0.0, 0.3, 0.6]}}
  - model: {ft3}
    parameters: {{weight: 0.4}}
dtype: bfloat16
"""


@dataclass(frozen=True)
class Method:
    """A measured recipe: its text and which tensors of which model it reads."""

    name: str
    text: str
    models: tuple[str, ...]
    # (model, tensor name, number of layers) -> the merge reads this tensor of this model
    reads: Callable[[str, str, int], bool] = lambda _model, _name, _layers: True


def layer_of(name: str) -> int | None:
    """Return the layer number in a tensor's name, None outside the layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def stacked_source(name: str, layers: int) -> str:
    """Return the model that the passthrough recipe takes this tensor from."""
    layer = layer_of(name)
    if layer is None:  # embeddings go with the first slice, the final norm and the head last
        return "base" if name == "model.embed_tokens.weight" else "ft1"
    return "base" if layer < layers // 2 else "ft1"


METHODS = {
    method.name: method
    for method in (
        Method("linear", MODELS_LINEAR, ("ft1", "ft2", "ft3")),
        Method("slerp", SLERP, ("base", "ft1")),
        Method("nuslerp", NUSLERP, ("ft1", "ft2")),
        Method("task_arithmetic", TASK_ARITHMETIC, ("base", "ft1", "ft2", "ft3")),
        Method(
            "passthrough",
            PASSTHROUGH,
            ("base", "ft1"),
            lambda model, name, layers: stacked_source(name, layers) == model,
        ),
    )
}


def recipe_text(template: str, folders: dict[str, Path], layers: int) -> str:
    """Fill a recipe's model folders and layer numbers in."""
    names = {model: str(folder) for model, folder in folders.items()}
    return template.format(**names, layers=layers, half=layers // 2)


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return a safetensors file's tensor entries and the offset where its data begins."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def needed_ranges(
    method: Method, folders: dict[str, Path], layers: int
) -> list[tuple[str, int, int]]:
    """Return the (path, offset, length) that the method must read, neighbours joined."""
    ranges: list[tuple[str, int, int]] = []
    for model in method.models:
        for path in sorted(folders[model].glob("*.safetensors")):
            header, data = read_header(path)
            spans = sorted(
                tuple(entry["data_offsets"])
                for name, entry in header.items()
                if method.reads(model, name, layers)
            )
            for start, end in spans:
                last = ranges[-1] if ranges else ("", 0, 0)
                if last[0] == str(path) and last[1] + last[2] == data + start:
                    ranges[-1] = (last[0], last[1], last[2] + end - start)
                else:
                    ranges.append((str(path), data + start, end - start))
    return ranges


def input_files(method: Method, folders: dict[str, Path]) -> list[Path]:
    """Return every weight file of the models that the method names."""
    return [p for m in method.models for p in sorted(folders[m].glob("*.safetensors"))]

"""The recipes that are measured, which input bytes each needs, and what each must give.

One YAML text per method, the same for both tools. The plain formulas are in `formulas.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


WEIGHTS = (0.5, 0.3, 0.4, 0.2, 0.6)
"""Of the fine-tunes, in their order."""


@dataclass(frozen=True)
class Wanted:
    """What a method must reach.

    Args:
        faster: the peer's whole process takes at least this many times as long.
        engine: the engine takes at most this many floors, None for no bound.
        peak: bytes of memory at most.
    """

    faster: float = 3.0
    engine: float | None = 2.0
    peak: float = 700e6


@dataclass(frozen=True)
class Method:
    """A measured recipe: its text, which tensors of which model it reads, what is wanted of it."""

    name: str
    text: str
    models: tuple[str, ...]
    # (model, tensor name, number of layers) -> the merge reads this tensor of this model
    reads: Callable[[str, str, int], bool] = lambda _model, _name, _layers: True
    wanted: Wanted = Wanted()
    peer: bool = True
    """Whether the peer has the method."""


@dataclass(frozen=True)
class Kind:
    """How the recipe of a method for any number of fine-tunes is written.

    Args:
        base: whether it has one.
        each: parameters of every fine-tune besides its weight, as YAML.
        weighted: whether fine-tunes have a weight.
        shared: parameters of the merge, as YAML.
        most: the largest number of fine-tunes.
        wanted, peer: as of a method.
    """

    base: bool = True
    each: str = ""
    weighted: bool = True
    shared: str = ""
    most: int = len(WEIGHTS)
    wanted: Wanted = Wanted()
    peer: bool = True


GIB = float(1 << 30)
THIN = "density: 0.5"
CRUMBS = f"{THIN}, gamma: 0.01"
KINDS = {
    "linear": Kind(base=False),
    "task_arithmetic": Kind(),
    "multislerp": Kind(base=False, wanted=Wanted(5, 3, GIB)),
    "karcher": Kind(base=False, weighted=False, wanted=Wanted(20, 3, GIB)),
    "model_stock": Kind(weighted=False, wanted=Wanted(4, 3, GIB)),
    "ties": Kind(each=THIN, wanted=Wanted(20, 6, GIB)),
    "breadcrumbs": Kind(each=CRUMBS, wanted=Wanted(20, 6, GIB)),
    "breadcrumbs_ties": Kind(each=CRUMBS, wanted=Wanted(20, 6, GIB)),
    "dare_linear": Kind(each=THIN, wanted=Wanted(8, 6, GIB)),
    "dare_ties": Kind(each=THIN, wanted=Wanted(8, 6, GIB)),
    "della_linear": Kind(each=THIN, wanted=Wanted(12, 12, GIB)),
    "della": Kind(each=THIN, wanted=Wanted(12, 12, GIB)),
    "sce": Kind(weighted=False, shared="select_topk: 0.5", wanted=Wanted(8, 6, GIB)),
    "arcee_fusion": Kind(weighted=False, most=1, wanted=Wanted(8, None, GIB)),
    "nearswap": Kind(weighted=False, shared="t: 0.0004", most=1, wanted=Wanted(3, None, GIB)),
    "ram": Kind(weighted=False, wanted=Wanted(3, None, GIB)),
    "ramplus_tl": Kind(weighted=False, wanted=Wanted(3, None, GIB)),
    "consensus_ta": Kind(each="k: 2, lambda: 0.4", wanted=Wanted(3, None, GIB), peer=False),
    "consensus_ties": Kind(
        each=f"{THIN}, k: 2, lambda: 0.4", wanted=Wanted(3, None, GIB), peer=False
    ),
}


def merged(name: str, tuned: int = 3) -> Method:
    """Return the method of a kind for this many fine-tunes, or as many as it takes."""
    kind = KINDS[name]
    models = tuple(f"ft{i + 1}" for i in range(min(tuned, kind.most)))
    lines = [f"merge_method: {name}"]
    if kind.base:
        lines.append("base_model: {base}")
    lines.append("models:")
    for model, weight in zip(models, WEIGHTS, strict=False):
        own = ", ".join(filter(None, [f"weight: {weight}" if kind.weighted else "", kind.each]))
        lines.append(f"  - model: {{{model}}}")
        lines += [f"    parameters: {{{{{own}}}}}"] if own else []
    if kind.shared:
        lines.append(f"parameters: {{{{{kind.shared}}}}}")
    lines.append("dtype: bfloat16")
    inputs = ("base", *models) if kind.base else models
    text = "\n".join(lines) + "\n"
    return Method(name, text, inputs, wanted=kind.wanted, peer=kind.peer)


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
        merged("linear"),
        Method("slerp", SLERP, ("base", "ft1")),
        Method("nuslerp", NUSLERP, ("ft1", "ft2")),
        merged("task_arithmetic"),
        Method(
            "passthrough",
            PASSTHROUGH,
            ("base", "ft1"),
            lambda model, name, layers: stacked_source(name, layers) == model,
        ),
        *(merged(name) for name in KINDS if name not in ("linear", "task_arithmetic")),
    )
}
CORE = ("linear", "slerp", "nuslerp", "task_arithmetic", "passthrough")
"""What core.py measures."""


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

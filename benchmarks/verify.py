"""Compare the outputs of both tools with each other and with the plain formula in float64.

    python benchmarks/verify.py SPECIFICATION.json

Run by `core.py` as a child process after each method, so that a benchmark of a wrong result
cannot pass. Distances are in bf16 units in the last place (ulp) of the expected value. Where sums
cancel to nearly nothing, the ulp of 1/256 of the tensor's root mean square is used instead: there
float32 itself is only exact in absolute terms.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from benchmarks.recipes import METHODS, read_header, stacked_source
from benchmarks.synthetic import from_bf16

Tensor = npt.NDArray[np.float64]
Tensors = dict[str, Tensor]
# One rounding of an exact value is at most half an ulp away; a float32 result beside a rounding
# boundary may fall to its other side.
OURS_LIMIT = 0.52


def find(folder: Path) -> dict[str, tuple[Path, dict[str, Any], int]]:
    """Return every tensor's file, header entry and data offset in a checkpoint folder."""
    found: dict[str, tuple[Path, dict[str, Any], int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = read_header(path)
        for name, entry in header.items():
            found[name] = (path, entry, data)
    return found


def load(folder: Path, name: str) -> Tensor:
    """Return one bf16 tensor of a checkpoint as flat float64."""
    path, entry, data = find(folder)[name]
    if entry["dtype"] != "BF16":
        raise TypeError(f"{path}: {name} is {entry['dtype']}, wanted BF16")
    start, end = entry["data_offsets"]
    bits = np.fromfile(path, np.uint16, (end - start) // 2, offset=data + start)
    return np.asarray(from_bf16(bits), dtype=np.float64)


def linear(x: Tensors) -> Tensor:
    """Return the normalised weighted mean of the recipe."""
    return (0.5 * x["ft1"] + 0.3 * x["ft2"] + 0.4 * x["ft3"]) / (0.5 + 0.3 + 0.4)


def arc(a: Tensor, b: Tensor, t: float, threshold: float) -> Tensor:
    """Return the spherical interpolation of two flat tensors, a straight one near the poles."""
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    cosine = float(np.clip(a @ b / lengths, -1, 1)) if lengths else 0.0
    if abs(cosine) > threshold:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def slerp(x: Tensors) -> Tensor:
    """Return slerp with t = 0.4 from the base, straight beyond a cosine of 0.9995."""
    return arc(x["base"], x["ft1"], 0.4, 0.9995)


def nuslerp(x: Tensors) -> Tensor:
    """Return nuslerp of two models with weights 0.6 and 0.4, straight only when collinear."""
    return arc(x["ft1"], x["ft2"], 0.4, 1 - 1e-15)


def task_arithmetic(x: Tensors) -> Tensor:
    """Return the base plus the weighted task vectors."""
    base = x["base"]
    return base + 0.5 * (x["ft1"] - base) + 0.3 * (x["ft2"] - base) + 0.4 * (x["ft3"] - base)


FORMULAS: dict[str, Callable[[Tensors], Tensor]] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "task_arithmetic": task_arithmetic,
}


def ulps(actual: Tensor, wanted: Tensor) -> Tensor:
    """Return |actual - wanted| in bf16 ulps of the wanted value (see the module's words)."""
    scale = np.sqrt(np.mean(wanted**2)) / 256
    size = np.maximum(np.abs(wanted), max(float(scale), 1e-38))
    distance = np.abs(actual - wanted) / np.exp2(np.floor(np.log2(size)) - 7)
    return np.where(np.isfinite(distance), distance, np.inf)  # a NaN must not pass as small


def sample(layers: int) -> list[str]:
    """Return the names of the compared tensors: one of each kind, over the depth."""
    middle, last = f"model.layers.{layers // 2}.", f"model.layers.{layers - 1}."
    return [
        "model.layers.0.self_attn.q_proj.weight",
        f"{middle}self_attn.v_proj.weight",
        f"{middle}mlp.down_proj.weight",
        f"{last}mlp.up_proj.weight",
        f"{last}input_layernorm.weight",
        "model.norm.weight",
    ]


def compare(specification: dict[str, Any]) -> dict[str, Any]:
    """Compare sampled tensors; return the largest distances and a list of faults."""
    method, layers = specification["method"], specification["layers"]
    inputs = {model: Path(folder) for model, folder in specification["inputs"].items()}
    outputs = {side: Path(folder) for side, folder in specification["outputs"].items()}
    wanted = {n: e["shape"] for n, (_, e, _) in find(inputs["base"]).items()}
    faults = []
    for side, folder in outputs.items():
        shapes = {n: e["shape"] for n, (_, e, _) in find(folder).items()}
        if shapes != wanted:
            faults.append(f"{side}: {len(set(shapes) ^ set(wanted))} names differ, or shapes do")
    largest: dict[str, float] = {}
    unequal = 0.0
    for name in sample(layers) if not faults else []:
        if method == "passthrough":
            expected = load(inputs[stacked_source(name, layers)], name)
        else:
            expected = FORMULAS[method]({m: load(inputs[m], name) for m in METHODS[method].models})
        made = {side: load(folder, name) for side, folder in outputs.items()}
        for side, tensor in made.items():
            largest[side] = max(largest.get(side, 0.0), float(ulps(tensor, expected).max()))
        if len(made) == 2:
            difference = float(ulps(made["ours"], made["peer"]).max())
            largest["between"] = max(largest.get("between", 0.0), difference)
            unequal = max(unequal, float(np.mean(made["ours"] != made["peer"])))
    limit = 0.0 if method == "passthrough" else OURS_LIMIT
    if largest.get("ours", 0.0) > limit:
        faults.append(f"ours: {largest['ours']:.3f} ulp from the formula, at most {limit} wanted")
    return {"max_ulps": largest, "unequal_share": unequal, "faults": faults}


def main() -> None:
    """Print the comparison as JSON."""
    print(json.dumps(compare(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()

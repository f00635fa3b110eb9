"""Compare the outputs of both tools with each other and with the plain formula in float64.

    python benchmarks/verify.py SPECIFICATION.json

Run by the benchmarks as a child process after each method, so that one of a wrong result cannot
pass. Of methods with chance only names, shapes and finite values are checked. Distances are in
bf16 units in the last place (ulp) of the expected value. Where sums cancel to nearly nothing, the
ulp of 1/256 of the tensor's root mean square is used instead: there float32 itself is only exact
in absolute terms.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.formulas import FORMULAS, RANDOM, Expected, Tensor
from benchmarks.recipes import METHODS, read_header, stacked_source
from benchmarks.synthetic import from_bf16

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
    """Return one tensor of a checkpoint as float64."""
    path, entry, data = find(folder)[name]
    start, end = entry["data_offsets"]
    if entry["dtype"] == "BF16":
        values = from_bf16(np.fromfile(path, np.uint16, (end - start) // 2, offset=data + start))
    elif entry["dtype"] == "F32":  # the peer writes some methods so, whatever the recipe says
        values = np.fromfile(path, np.float32, (end - start) // 4, offset=data + start)
    else:
        raise TypeError(f"{path}: {name} is {entry['dtype']}, wanted BF16 or F32")
    return np.asarray(values, dtype=np.float64).reshape(entry["shape"])


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


def exact(method: str, inputs: dict[str, Path], name: str, layers: int) -> Expected:
    """Return what a tensor of a method's recipe should be."""
    if method == "passthrough":
        return load(inputs[stacked_source(name, layers)], name), None
    return FORMULAS[method]({m: load(inputs[m], name) for m in METHODS[method].models})


def compare(specification: dict[str, Any]) -> dict[str, Any]:
    """Compare sampled tensors; return the largest distances and a list of faults."""
    method, layers = specification["method"], specification["layers"]
    inputs = {model: Path(folder) for model, folder in specification["inputs"].items()}
    outputs = {side: Path(folder) for side, folder in specification["outputs"].items()}
    wanted = {n: e["shape"] for n, (_, e, _) in find(inputs["base"]).items()}
    faults = []
    for side, folder in outputs.items():
        shapes = {n: e["shape"] for n, (_, e, _) in find(folder).items()}
        if side == "ours" and {e["dtype"] for _, e, _ in find(folder).values()} != {"BF16"}:
            faults.append("ours: not all tensors are BF16")
        if shapes != wanted:
            faults.append(f"{side}: {len(set(shapes) ^ set(wanted))} names differ, or shapes do")
    largest: dict[str, float] = {}
    unequal = None if method in RANDOM else 0.0
    for name in sample(layers) if not faults else []:
        made = {side: load(folder, name) for side, folder in outputs.items()}
        for side, tensor in made.items():
            if not np.isfinite(tensor).all():
                faults.append(f"{side}: {name} has values that are not finite")
        if method in RANDOM:
            continue
        expected, undecided = exact(method, inputs, name, layers)
        for side, tensor in made.items():
            distance = ulps(tensor, expected)
            if undecided is not None:
                distance = np.where(undecided, 0, distance)
            largest[side] = max(largest.get(side, 0.0), float(distance.max()))
        if len(made) == 2:
            difference = float(ulps(made["ours"], made["peer"]).max())
            largest["between"] = max(largest.get("between", 0.0), difference)
            unequal = max(unequal or 0.0, float(np.mean(made["ours"] != made["peer"])))
    limit = 0.0 if method == "passthrough" else OURS_LIMIT
    if largest.get("ours", 0.0) > limit:
        faults.append(f"ours: {largest['ours']:.3f} ulp from the formula, at most {limit} wanted")
    return {"max_ulps": largest, "unequal_share": unequal, "faults": faults}


def main() -> None:
    """Print the comparison as JSON."""
    print(json.dumps(compare(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()

"""Run mergekit and mergeloom on the same tiny models and recipes, and compare every number.

    python benchmarks/peer.py setup                      # once
    python benchmarks/parity.py --out docs/parity.md

For every method without chance and many settings: the largest absolute difference of the results
on float32 models, how many elements differ by more than rounding, and, on bfloat16 models, the
share of elements that equal the float64 result rounded once, for both tools.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

import mergeloom
from benchmarks import parity_settings
from benchmarks.machine import versions
from benchmarks.parity_settings import SETTINGS, Setting
from benchmarks.peer import chosen

HIDDEN, INNER, VOCABULARY, LAYERS = 256, 384, 4200, 2  # the vocabulary has over 10⁶ elements
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """What both tools made of one setting."""

    setting: Setting
    difference: float | None
    beyond: float
    errors: tuple[float, float | None]
    ours: float
    peer: float | None


# --- models ---------------------------------------------------------------------------------------


def shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a llama of two layers."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"model.layers.{i}.self_attn.{name}.weight"] = (HIDDEN, HIDDEN)
        for name in ("gate_proj", "up_proj"):
            found[f"model.layers.{i}.mlp.{name}.weight"] = (INNER, HIDDEN)
        found[f"model.layers.{i}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{i}.{name}.weight"] = (HIDDEN,)
    return {**found, "model.norm.weight": (HIDDEN,)}


def make_models(folder: Path, dtype: torch.dtype) -> dict[str, Path]:
    """Write a base, fine-tunes with large (a, b, c) and with usual changes (s1 … s3), …"""
    base = numbers(0, 0.02)
    made = {"base": base}
    for seed, name in enumerate(("a", "b", "c"), 1):
        made[name] = {n: base[n] + d for n, d in numbers(seed, 0.006 * seed).items()}
    for seed, name in enumerate(("s1", "s2", "s3"), 11):
        made[name] = {n: base[n] + d for n, d in numbers(seed, 1e-4 * (seed - 9)).items()}
    for seed, name in enumerate(("u1", "u2", "u3"), 21):  # leave the norms as they were
        changes = numbers(seed, 0.01)
        made[name] = {n: base[n] + d * (d.ndim > 1) for n, d in changes.items()}
    made["opposite"] = {n: 2 * base[n] - x for n, x in made["a"].items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6, "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    folders = {}
    for name, tensors in made.items():
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        held = {n: t.to(dtype).contiguous() for n, t in tensors.items()}
        save_file(held, folders[name] / "model.safetensors", {"format": "pt"})
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders


def numbers(seed: int, scale: float) -> Tensors:
    """Return normal numbers of every shape, times ``scale``."""
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=random) * scale for n, s in shapes().items()}


# --- running --------------------------------------------------------------------------------------


def recipe(setting: Setting, folders: dict[str, Path], dtype: str) -> dict[str, Any]:
    """Return the recipe that both tools read."""
    made: dict[str, Any] = {
        "merge_method": setting.method,
        "models": [{"model": str(folders[m]), **({"parameters": dict(p)} if p else {})}
                   for m, p in setting.models.items()],
        "parameters": dict(setting.parameters),
        "dtype": dtype,
    }  # fmt: skip
    if setting.base:
        made["base_model"] = str(folders[setting.base])
    return made


def run_peer(
    venv: Path, settings: list[Setting], folders: dict[str, Path], dtype: str, work: Path
) -> dict[str, str]:
    """Run all settings in one process of the peer; return the error of each that has none."""
    documents = [{"name": str(i), **recipe(s, folders, dtype)} for i, s in enumerate(settings)]
    results = work / "peer"
    safe = [d for d, s in zip(documents, settings, strict=True) if not s.peer_fails]
    batches = [safe, *([d] for d in documents if d not in safe)]
    errors = {}
    for batch in batches:
        path = work / "recipes.yaml"
        path.write_text(yaml.safe_dump_all(batch, sort_keys=False))
        command = [chosen(venv) / "bin" / "mergekit-multi", path, "-I", results,
                   "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1]
            if len(batch) > 1:
                raise SystemExit(done.stderr[-3000:])
            errors[str(batch[0]["name"])] = last
    return errors


def load(folder: Path) -> Tensors:
    """Return all tensors of a result."""
    return {n: t for p in sorted(folder.glob("*.safetensors")) for n, t in load_file(p).items()}


def run_ours(setting: Setting, folders: dict[str, Path], dtype: str, out: Path) -> Tensors:
    """Return our result of a setting."""
    mergeloom.merge(recipe(setting, folders, dtype), out)
    found = load(out)
    shutil.rmtree(out)
    return found


# --- comparing ------------------------------------------------------------------------------------


def to_bfloat16(values: torch.Tensor) -> np.ndarray:
    """Round float64 once, to nearest, ties to even: float32 on the way would round twice."""
    bits = values.double().numpy().view(np.int64)
    rest = 52 - 7
    rounded = bits + ((1 << (rest - 1)) - 1) + ((bits >> rest) & 1)
    return ((rounded >> rest) << rest).view(np.float64)


def equal_share(got: Tensors, exact: Tensors) -> float:
    """Return the share of elements that equal the exact value rounded once to bfloat16."""
    total = equal = 0
    for name, values in exact.items():
        equal += int((got[name].double().numpy() == to_bfloat16(values)).sum())
        total += values.numel()
    return equal / total


def largest(got: Tensors, exact: Tensors) -> float:
    """Return the largest absolute difference."""
    return max(float((got[n].double() - x.double()).abs().max()) for n, x in exact.items())


def beyond_rounding(got: Tensors, peer: Tensors, base: Tensors) -> tuple[float, float]:
    """Return the largest difference and the share of elements further apart than rounding."""
    beyond, total = 0, 0
    for name, ours in got.items():
        apart = (ours.double() - peer[name].double()).abs()
        limit = 2.0**-22 * (ours.double().abs() + base[name].double().abs() + 0.05)
        beyond += int((apart > limit).sum())
        total += apart.numel()
    return largest(got, peer), beyond / total


def compare(venv: Path, work: Path) -> list[Row]:
    """Run everything and return a row for every setting."""
    found: dict[int, dict[str, Any]] = {i: {} for i in range(len(SETTINGS))}
    for dtype, kind in DTYPES.items():
        folders = make_models(work / dtype, kind)
        base = load(folders["base"])
        errors = run_peer(venv, SETTINGS, folders, dtype, work / dtype)
        for i, setting in enumerate(SETTINGS):
            ours = run_ours(setting, folders, dtype, work / "ours")
            peer = None if str(i) in errors else load(work / dtype / "peer" / str(i))
            row = found[i]
            exact = run_ours(setting, folders, "float64", work / "ours")
            if dtype == "float32":
                row["difference"], row["beyond"] = (
                    beyond_rounding(ours, peer, base) if peer else (None, 0.0)
                )
                row["errors"] = (largest(ours, exact), largest(peer, exact) if peer else None)
                continue
            row["ours"] = equal_share(ours, exact)
            row["peer"] = equal_share(peer, exact) if peer else None
    return [Row(s, **found[i]) for i, s in enumerate(SETTINGS)]


# --- report ---------------------------------------------------------------------------------------


def report(rows: list[Row], venv: Path) -> str:
    """Return the page in Markdown."""
    ours = versions(Path(sys.executable), ("mergeloom", "torch", "numpy"))
    peer = versions(chosen(venv) / "bin" / "python", ("mergekit", "torch"))
    lines = [
        "<!-- Written by benchmarks/parity.py; do not edit. -->",
        "",
        *parity_settings.INTRODUCTION.splitlines(),
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} with mergeloom {ours.get('mergeloom')} "
        f"(torch {ours.get('torch')}, numpy {ours.get('numpy')}) and mergekit "
        f"{peer.get('mergekit')} (torch {peer.get('torch')}).",
        "",
        "| method | setting | largest difference | beyond rounding | error: ours | "
        "error: mergekit | bf16: ours | bf16: mergekit | why |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        setting = row.setting
        apart = "no result" if row.difference is None else f"{row.difference:.1e}"
        beyond = "–" if row.difference is None else f"{100 * row.beyond:.3g} %"
        theirs = "error" if row.peer is None else percent(row.peer)
        why = reason(row)
        lines.append(
            f"| {setting.method} | {setting.label} | {apart} | {beyond} | {row.errors[0]:.1e} | "
            f"{'–' if row.errors[1] is None else format(row.errors[1], '.1e')} | "
            f"{percent(row.ours)} | {theirs} | {why or '**unexplained**'} |"
        )
    return "\n".join([*lines, ""])


def reason(row: Row) -> str:
    """Return why the results differ: rounding, if that is all."""
    if row.difference is not None and not row.beyond:
        return "rounding" if row.difference else "equal"
    near = row.errors[1] is not None and row.errors[0] < row.errors[1] < 1e-5
    return row.setting.why or (parity_settings.SUMS if near else "")


def percent(share: float) -> str:
    """Return a share that says 100 only when it is everything."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.999):.3f} %"


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    parser.add_argument("--peer-venv", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = compare(arguments.peer_venv, Path(work))
    arguments.out.write_text(report(rows, arguments.peer_venv))
    print(arguments.out)


if __name__ == "__main__":
    main()

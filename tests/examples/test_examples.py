"""Every file in examples/ runs as it stands, through the real command line, on tiny models.

The test's folder holds a folder for each model name that the examples use, so nothing in them has
to be replaced. A new example needs a line in LAYERS only if its output is not a 32-layer Llama.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import LLAMA_LAYER, tensors

from mergeloom.cli.errors import run_command
from mergeloom.cli.main import mergeloom

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yml"))
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
MODEL = re.compile(r"\borg/[\w-]+")
LAYERS = {"frankenmerge": 48, "block-expansion": 36, "frankenmerge-linear": 40, "anchors": 42}
NOT_LLAMA = {"raw-files", "vision-language"}
MERGELOOM = Path(sys.executable).with_name("mergeloom")

Tensors = dict[str, torch.Tensor]
Merge = Callable[[Path], tuple[Path, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every model name of the examples is a folder, and raw files lie."""
    root = tmp_path_factory.mktemp("models")
    named = {name for file in (*RECIPES, *SCRIPTS) for name in MODEL.findall(file.read_text())}
    for name in sorted(named):
        make = tiny_models.vision_language if "vlm" in name else tiny_models.llama
        make(root / name)
    tiny_models.raw_files(root / "weights")
    return root


@pytest.fixture
def merge(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Merge:
    """``mergeloom merge``: the finished folder and what was said on stderr.

    The program's own entry, without the seconds that a new process needs to import torch.
    """
    monkeypatch.chdir(models)

    def call(recipe: Path) -> tuple[Path, str]:
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as ended:
            run_command(mergeloom, ["merge", str(recipe), str(out)])
        said = capsys.readouterr().err
        assert ended.value.code == 0, said
        return out, said

    return call


def run(folder: Path, *command: str | Path) -> str:
    """Run a program without a network; its messages."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_and_gives_what_its_comments_say(
    recipe: Path, models: Path, merge: Merge
) -> None:
    out, said = merge(recipe)
    assert ("warning" in said) == (recipe.stem == "pinned-revisions"), said
    merged = tensors(out)
    assert not any(torch.isnan(tensor).any() for tensor in merged.values())
    if recipe.stem not in NOT_LLAMA:
        layers = LAYERS.get(recipe.stem, 32)
        assert len(merged) == layers * len(LLAMA_LAYER) + 3
        assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == layers
        assert (out / "tokenizer.json").exists()
        assert (out / "generation_config.json").exists()
    if check := CHECKS.get(recipe.stem):
        check(merged, lambda name: tensors(models / name))


def test_the_installed_program_does_the_same(models: Path, tmp_path: Path, merge: Merge) -> None:
    recipe = EXAMPLES / "linear.yml"
    run(models, MERGELOOM, "merge", recipe, tmp_path / "program")
    ours, theirs = (tensors(f) for f in (merge(recipe)[0], tmp_path / "program"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script: Path, models: Path) -> None:
    run(models, sys.executable, script)


def test_an_expanded_model_says_what_its_parent_says(models: Path, merge: Merge) -> None:
    transformers = pytest.importorskip("transformers")
    out, _ = merge(EXAMPLES / "block-expansion.yml")
    words = torch.arange(12)[None]
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(words).logits
        for folder in (models / "org/A", out)
    ]
    torch.testing.assert_close(*logits)


def test_a_stacked_model_loads(merge: Merge) -> None:
    transformers = pytest.importorskip("transformers")
    out, _ = merge(EXAMPLES / "frankenmerge.yml")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert len(model.model.layers) == 48


# --- what the comments promise, in plain arithmetic --------------------------------------------

Load = Callable[[str], Tensors]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for the last bit: float32 sums may be taken in another order."""
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=2**-7, atol=1e-6)


def linear(merged: Tensors, load: Load) -> None:
    writing, coding, reasoning = (load(f"org/{n}") for n in ("writing", "coding", "reasoning"))
    for name in ("lm_head.weight", "model.layers.17.mlp.up_proj.weight"):
        total = 2 * writing[name].float() + coding[name].float() + reasoning[name].float()
        close(merged[name], total / 4)


def slerp_gradient(merged: Tensors, load: Load) -> None:
    a, b = load("org/A"), load("org/B")
    for name, wanted in {
        "model.layers.0.self_attn.q_proj.weight": a,
        "model.layers.31.self_attn.q_proj.weight": b,
        "model.layers.0.mlp.up_proj.weight": b,
        "model.layers.31.mlp.up_proj.weight": a,
    }.items():
        close(merged[name], wanted[name])


def task_arithmetic(merged: Tensors, load: Load) -> None:
    base = load("org/base")
    weights = {"org/math": [0.8, 0.8], "org/code": [0.2, 0.8], "org/rude": [-0.3, -0.3]}
    for end, name in enumerate(("model.embed_tokens.weight", "lm_head.weight")):
        b = base[name].float()
        delta = sum(w[end] * (load(m)[name].float() - b) for m, w in weights.items())
        close(merged[name], b + 0.9 * delta)


def frankenmerge(merged: Tensors, load: Load) -> None:
    a, b = load("org/A"), load("org/B")
    part = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(merged[part.format(23)], a[part.format(23)])
    assert torch.equal(merged[part.format(24)], b[part.format(8)])
    assert torch.equal(merged[part.format(47)], b[part.format(31)])
    assert torch.equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(merged["lm_head.weight"], b["lm_head.weight"])


def frankenmerge_linear(merged: Tensors, load: Load) -> None:
    a, b = load("org/A"), load("org/B")
    part = "model.layers.{}.mlp.up_proj.weight"
    close(merged["lm_head.weight"], a["lm_head.weight"])
    close(merged[part.format(0)], a[part.format(0)])
    close(merged[part.format(1)], b[part.format(1)])
    close(merged[part.format(16)], 0.75 * a[part.format(8)].float() + 0.25 * b[part.format(8)])
    close(merged[part.format(32)], b[part.format(24)])


def anchors(merged: Tensors, load: Load) -> None:
    a = load("org/A")
    name = "model.layers.{}.self_attn.q_proj.weight"
    close(merged[name.format(20)], a[name.format(10)] * 0.7071)
    assert torch.equal(merged[name.format(30)], a[name.format(20)])


def partial(merged: Tensors, load: Load) -> None:
    base, math = load("org/base"), load("org/math")
    selected = re.compile(r"layers\.(8|9|1\d|2[0-3])\.self_attn\.[qkv]_proj")
    for name, tensor in merged.items():
        assert torch.equal(tensor, (math if selected.search(name) else base)[name]), name


def raw_files(merged: Tensors, load: Load) -> None:
    first, second = load("weights/first.safetensors"), load("weights/second.pt")
    for name, t in (("decoder.weight", 0.8), ("encoder.weight", 0.5)):
        assert merged[name].dtype == torch.float16
        close(merged[name], (1 - t) * first[name].float() + t * second[name].float())
    assert merged["steps"].item() == 7


def vision_language(merged: Tensors, load: Load) -> None:
    base, tuned = load("org/vlm"), load("org/vlm-finetuned")
    for name, tensor in merged.items():
        if name.startswith("language_model."):
            b = base[name].float()
            close(tensor, b + 0.6 * (tuned[name].float() - b))
        else:
            assert torch.equal(tensor, base[name]), name


CHECKS: dict[str, Callable[[Tensors, Load], None]] = {
    "linear": linear,
    "slerp-gradient": slerp_gradient,
    "task-arithmetic": task_arithmetic,
    "frankenmerge": frankenmerge,
    "frankenmerge-linear": frankenmerge_linear,
    "anchors": anchors,
    "partial": partial,
    "raw-files": raw_files,
    "vision-language": vision_language,
}

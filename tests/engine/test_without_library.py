"""Without the compiled library torch computes: the same bytes, and the user is told."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from click.testing import CliRunner
from models import assert_same_files, save
from stopping import Stop, stop_after

import mergeloom
from mergeloom.cli.main import mergeloom as command
from mergeloom.engine import kernels
from mergeloom.engine.native import blocks, library, shared_object
from mergeloom.methods import METHODS

# They add something up over a tensor; the order of the sum decides its last bits.
SUMMING = {"dare_linear", "dare_ties", "della", "della_linear", "karcher", "model_stock",
           "multislerp", "nuslerp", "sce", "slerp"}  # fmt: skip
SHAPES = {"a": (5, 3), "b": (64, 33), "c": (3000,)}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@contextmanager
def no_library():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "run_program", lambda: None)
        patch.setattr(shared_object, "loaded", lambda: "it was taken away")
        library.function.cache_clear()
        yield
    library.function.cache_clear()


def model(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Normal numbers, zeros of both signs and small ones among them."""
    chance = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in SHAPES.items():
        factors = torch.tensor([1.0, 1.0, 8.0, 0.0, -0.0, 2.0**-12])
        chosen = factors[torch.randint(6, shape, generator=chance)]
        made[name] = (torch.randn(shape, generator=chance) * chosen).to(dtype)
    return made


def recipe(name: str) -> dict[str, object]:
    method = METHODS[name]
    others = min(method.models[1] or 3, 2 if name in ("slerp", "nuslerp") else 3)
    each = {p.name for p in method.parameters if p.per_model}
    models: list[dict[str, object]] = []
    for i in range(1 if name == "slerp" else others):
        numbers = {"weight": 0.3 + 0.11 * i, "scale": 0.7}
        models.append(
            {"model": f"m{i}", "parameters": {k: numbers[k] for k in numbers if k in each}}
        )
    made: dict[str, object] = {"merge_method": name, "models": models}
    if method.base != "forbidden" and name not in ("linear", "karcher", "multislerp"):
        made["base_model"] = "base"
    if name in ("slerp", "nearswap"):
        made["parameters"] = {"t": 0.3 if name == "slerp" else 0.01}
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_bytes_are_the_same(method, dtype):
    given = {
        name: model(seed, DTYPES[dtype]) for seed, name in enumerate(("base", "m0", "m1", "m2"))
    }
    tiled = mergeloom.merge_state_dicts(recipe(method), given)
    with no_library():
        other = mergeloom.merge_state_dicts(recipe(method), given)
    for name, ours in tiled.items():
        theirs = other[name]
        if method in SUMMING:
            sizes = sum(tensors[name].abs().float() for tensors in given.values())
            allowed = torch.finfo(ours.dtype).eps * ours.abs().float() + 1e-6 * sizes
            assert bool(((ours.float() - theirs.float()).abs() <= allowed).all())
        else:
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two models and a recipe that averages them."""
    for seed in range(2):
        save(tmp_path / f"m{seed}", model(seed, torch.float32), {"model_type": "x"})
    (tmp_path / "linear.yml").write_text(
        f"merge_method: linear\nmodels:\n- {{model: {tmp_path}/m0, parameters: {{weight: 0.3}}}}\n"
        f"- {{model: {tmp_path}/m1, parameters: {{weight: 0.7}}}}\n"
    )
    (tmp_path / "copy.yml").write_text(f"merge_method: passthrough\nmodels: [{tmp_path}/m0]\n")
    return tmp_path


def said(*arguments: object) -> str:
    done = CliRunner().invoke(command, ["merge", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stderr


def test_the_user_is_told_once_where_it_costs_time(folder):
    assert "compiled library" not in said(folder / "linear.yml", folder / "with")
    with no_library():
        told = said(folder / "linear.yml", folder / "without")
        quiet = said(folder / "linear.yml", folder / "quiet", "-q")
        copied = said(folder / "copy.yml", folder / "copied")
    (line,) = [line for line in told.splitlines() if "compiled library" in line]
    assert line.startswith("warning: --device cpu: ")
    assert "(it was taken away), so torch computes" in line
    assert "Install mergeloom from a wheel" in line
    assert quiet == ""
    assert "compiled library" not in copied


def test_a_library_that_cannot_be_loaded_is_one_that_is_missing(tmp_path, monkeypatch):
    broken = tmp_path / "_tiles.so"
    broken.write_text("made for another machine")
    monkeypatch.setattr(shared_object, "LIBRARY", broken)
    assert str(broken) in shared_object.loaded.__wrapped__()
    monkeypatch.setattr(shared_object, "LIBRARY", tmp_path / "none")
    assert "not compiled" in shared_object.loaded.__wrapped__()


@pytest.mark.parametrize("library_goes", [True, False])
def test_a_run_is_only_continued_with_the_arithmetic_it_began_with(library_goes, folder):
    text, out = folder / "linear.yml", folder / "out"
    with pytest.raises(Stop):
        mergeloom.merge(text, out, progress=stop_after(2), threads=1)
    if library_goes:
        with no_library():
            assert mergeloom.merge(text, out).resumed == 0
    else:
        assert mergeloom.merge(text, out, device="cpu").resumed > 0
    mergeloom.merge(text, folder / "whole" / "out")
    assert_same_files(out, folder / "whole" / "out")


def test_every_kind_of_device_is_an_arithmetic_of_its_own(monkeypatch):
    monkeypatch.setattr(kernels, "resolve_device", lambda name: name)
    assert [kernels.arithmetic(name) for name in ("cpu", "cuda:1", "mps")] == [
        "tiles", "cuda", "mps"
    ]  # fmt: skip
    with no_library():
        assert kernels.arithmetic("cpu") == "cpu"

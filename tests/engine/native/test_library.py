"""The compiled library: what is built, what a wheel carries, which variant a processor gets."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built_wheel(folder: Path, **environment: str) -> tuple[Path, set[str]]:
    """The wheel of this tree, and the names of the files of ``engine/native`` in it."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(
        build, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    names = map(Path, zipfile.ZipFile(wheel).namelist())
    return wheel, {p.name for p in names if p.parent == Path("mergeloom/engine/native")}


def test_a_wheel_carries_the_library_and_the_tag_of_its_platform(hook, tmp_path):
    wheel, names = built_wheel(tmp_path)
    library = hook.build()
    assert library.path.name in names
    assert not {name for name in names if name.endswith((".c", ".h"))}
    assert wheel.name.endswith(f"-py3-none-{library.tag}.whl")
    assert library.tag != "any"


def test_a_wheel_for_another_platform_has_that_platforms_library_alone(hook, tmp_path):
    other = "aarch64-linux" if hook.host() == "x86_64-linux" else "x86_64-linux"
    wheel, names = built_wheel(tmp_path, MERGELOOM_TARGET=other)
    assert wheel.name.endswith(f"-py3-none-{hook.TARGETS[other].tag}.whl")
    assert {name for name in names if name.startswith("_tiles")} == {"_tiles.so"}
    inside = zipfile.ZipFile(wheel).read("mergeloom/engine/native/_tiles.so")
    assert inside == hook.build(other).path.read_bytes() != hook.build().path.read_bytes()


def test_the_variants_are_not_exported(hook):
    library = ctypes.CDLL(str(hook.build().path))
    assert library.mergeloom_run_program
    for variant in hook.VARIANTS["x86_64"]:
        assert not hasattr(library, f"run_program_{variant}")


def variants_for_this_processor() -> list[str]:
    """What it can run, the best last; numpy asks the processor by itself."""
    from numpy._core._multiarray_umath import __cpu_features__ as has

    names = ["run_program_any"]
    if platform.machine().lower() in ("x86_64", "amd64"):
        names += ["run_program_v3"] * has["X86_V3"] + ["run_program_v4"] * has["X86_V4"]
    return names


def test_the_best_variant_that_the_processor_can_run_is_chosen(hook, tmp_path, monkeypatch):
    """Each variant returns a letter of its own name."""
    (tmp_path / "dispatch.c").write_text(
        re.sub(r"(each\(run_program\)).*", r"\1", (hook.SOURCES / "dispatch.c").read_text())
    )
    (tmp_path / "numbered.c").write_text(
        "#define TEXT_(name) #name\n#define TEXT(name) TEXT_(name)\n"
        f'#include "{hook.SOURCES / "variant.h"}"\n'
        "int VARIED(run_program)(void);\n"
        "int VARIED(run_program)(void) { return TEXT(VARIED(run_program))[12]; }\n"
    )
    monkeypatch.setattr(hook, "SOURCES", tmp_path)
    machine, _ = hook.host().split("-")
    compiler = hook.zig(hook.TARGETS[hook.host()])
    library = tmp_path / "_tiles.so"
    hook.compile_library(compiler, hook.VARIANTS.get(machine, hook.BASELINE), library)

    choose = ctypes.CDLL(str(library)).mergeloom_run_program
    choose.restype = ctypes.c_void_p
    chosen = ctypes.CFUNCTYPE(ctypes.c_int)(choose(99))()
    assert chr(chosen) == variants_for_this_processor()[-1][12]


def test_without_a_compiler_the_error_says_so(hook, tmp_path, monkeypatch):
    monkeypatch.setattr(hook, "zig", lambda target: None)
    monkeypatch.setattr(hook, "SOURCES", tmp_path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(hook.CompileError, match="neither the package ziglang nor a C compiler"):
        hook.build()
    monkeypatch.setenv("CC", str(tmp_path / "gcc"))
    with pytest.raises(hook.CompileError, match="cannot be run"):
        hook.build()
    with pytest.raises(hook.CompileError, match="ziglang is needed to compile for aarch64-macos"):
        hook.build("aarch64-macos")
    with pytest.raises(hook.CompileError, match="none of the targets x86_64-linux"):
        hook.build("riscv64-linux")


def test_a_source_that_does_not_compile_says_what_the_compiler_says(hook, tmp_path, monkeypatch):
    (tmp_path / "dispatch.c").write_text("int dispatch(void) { return missing; }\n")
    monkeypatch.setattr(hook, "SOURCES", tmp_path)
    compiler = hook.zig(hook.TARGETS[hook.host()])
    with pytest.raises(hook.CompileError, match="missing"):
        hook.compile_library(compiler, hook.BASELINE, tmp_path / "_tiles.so")
    assert not (tmp_path / "_tiles.so").exists()


def test_it_is_compiled_again_only_when_a_source_is_newer(hook, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(hook, "SOURCES", tmp_path)
    monkeypatch.setattr(
        hook, "compile_library", lambda _, __, output: [compiled.append(output), output.touch()]
    )
    (tmp_path / "tiles.c").touch()
    (tmp_path / "dispatch.c").touch()
    hook.build()
    hook.build()
    assert len(compiled) == 1
    later = compiled[0].stat().st_mtime + 1
    os.utime(tmp_path / "tiles.c", (later, later))
    hook.build()
    assert len(compiled) == 2

"""Compiles the engine's C files into a library and puts it into the wheel.

``python hatch_build.py`` and an editable install compile it in place. The compiler is that of the
package ziglang; without it ``$CC`` or ``cc``. Without any of them the package works as well, and
torch does the arithmetic. ``MERGELOOM_TARGET=aarch64-macos`` makes the wheel of another platform.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCES = ROOT / "src/mergeloom/engine/native"
DISPATCH = "dispatch.c"
SUFFIXES = {"windows": "dll", "macos": "dylib"}

# Every operation is rounded on its own, so that every processor gives the same bytes; floating
# point exceptions and errno are read by nobody, which lets loops become vector instructions.
FLAGS = """-O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fPIC -fno-sanitize=all
-Wall -Wextra""".split()

# All C files but dispatch.c are compiled for several processors; see variant.h.
BASELINE: dict[str, str | None] = {"any": None}
VARIANTS: dict[str, dict[str, str | None]] = {
    "x86_64": {"any": "x86-64", "v3": "x86-64-v3", "v4": "x86-64-v4"}
}


class CompileError(Exception):
    """The library could not be compiled."""


class Target(NamedTuple):
    """A platform that wheels are made for."""

    zig: str
    tag: str


# The oldest glibc and macOS that a wheel works on are those of zig's target.
TARGETS = {
    "x86_64-linux": Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64.manylinux2014_x86_64"),
    "aarch64-linux": Target(
        "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64.manylinux2014_aarch64"
    ),
    "x86_64-macos": Target("x86_64-macos.11.0", "macosx_11_0_x86_64"),
    "aarch64-macos": Target("aarch64-macos.11.0", "macosx_11_0_arm64"),
    "x86_64-windows": Target("x86_64-windows-gnu", "win_amd64"),
    "aarch64-windows": Target("aarch64-windows-gnu", "win_arm64"),
}


class Compiler(NamedTuple):
    """A command that compiles, and what it writes into names of processors: ``x86-64-v3``."""

    command: tuple[str, ...]
    separator: str = "-"


class Library(NamedTuple):
    """A compiled library and the platform tag of a wheel that holds it."""

    path: Path
    tag: str


def host() -> str:
    """This platform as ``machine-system``; one of TARGETS where zig can compile for it."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    other_libc = system == "linux" and platform.libc_ver()[0] != "glibc"
    return f"{machine}-{'other' if other_libc else system}"


def zig(target: Target) -> Compiler | None:
    """The same compiler on all machines: a warning is an error, and a wheel fits old systems."""
    if not importlib.util.find_spec("ziglang"):
        return None
    command = (sys.executable, "-m", "ziglang", "cc", "-target", target.zig, "-Werror", "-s")
    return Compiler(command, separator="_")


def system_compiler() -> Compiler:
    """``$CC``, else ``cc``."""
    command = os.environ.get("CC") or shutil.which("cc")
    if not command:
        raise CompileError("there is neither the package ziglang nor a C compiler")
    return Compiler(tuple(shlex.split(command)))


def build(name: str | None = None) -> Library:
    """Compile where a source is newer than the library: for this platform in place, or a target.

    Raises:
        CompileError: there is no such target, no compiler, or it refuses the source.
    """
    if name and name not in TARGETS:
        raise CompileError(f"{name} is none of the targets {', '.join(TARGETS)}")
    machine, system = (name or host()).split("-")
    target = TARGETS.get(name or host())
    compiler = zig(target) if target else None
    if name and not compiler:
        raise CompileError(f"the package ziglang is needed to compile for {name}")
    folder = ROOT / "build" / name if name else SOURCES
    output = folder / f"_tiles.{SUFFIXES.get(system, 'so')}"
    newest = max(path.stat().st_mtime for path in [*SOURCES.glob("*.[ch]"), Path(__file__)])
    if not output.exists() or output.stat().st_mtime < newest:
        compile_library(compiler or system_compiler(), VARIANTS.get(machine, BASELINE), output)
    if target and compiler:
        return Library(output, target.tag)
    return Library(output, re.sub(r"[-.]", "_", sysconfig.get_platform()))


def compile_library(compiler: Compiler, variants: dict[str, str | None], output: Path) -> None:
    """Compile all variants of every file, and what chooses; a library in use stays whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix="_tiles.") as folder:
        objects = [f"{folder}/dispatch.o"]
        run(compiler, ["-c", str(SOURCES / DISPATCH), "-o", objects[0]])
        varied = sorted(path for path in SOURCES.glob("*.c") if path.name != DISPATCH)
        for source, (variant, processor) in itertools.product(varied, variants.items()):
            objects.append(f"{folder}/{source.stem}_{variant}.o")
            options = ["-c", str(source), f"-DVARIANT={variant}", "-fvisibility=hidden"]
            if processor:
                options.append(f"-march={processor.replace('-', compiler.separator)}")
                # Otherwise compilers avoid AVX-512, which takes up to half as long again.
                options.append("-mprefer-vector-width=512")
            run(compiler, [*options, "-o", objects[-1]])
        linked = Path(folder, output.name)
        run(compiler, ["-shared", *objects, "-o", str(linked)])
        linked.replace(output)


def run(compiler: Compiler, options: list[str]) -> None:
    """Run a compiler; what it says is the error."""
    command = [*compiler.command, *FLAGS, *options]
    try:
        # S603: the compiler that the caller chose.
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise CompileError(f"the C compiler {command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise CompileError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


class NativeLibrary(BuildHookInterface[Any]):
    """What hatchling runs before it makes a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library, and the tag of what it runs on: any Python 3 of one platform."""
        name = os.environ.get("MERGELOOM_TARGET")
        try:
            library = build(name)
        except CompileError as error:
            if name:
                raise
            self.app.display_warning(
                f"mergeloom is built without its compiled library, so torch computes: {error}"
            )
            return
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{library.tag}"
        package = SOURCES.relative_to(ROOT / "src").as_posix()
        build_data["force_include"][str(library.path)] = f"{package}/{library.path.name}"


if __name__ == "__main__":
    try:
        build()
    except CompileError as error:
        sys.exit(f"hatch_build.py: {error}")

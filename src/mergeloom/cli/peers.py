"""``mergekit-yaml`` and ``mergekitty-yaml``: the lines people have in notebooks, unchanged.

Every flag of the namesake is accepted. Flags that have no meaning here (there is no pickle to
unpickle lazily, no cache to fill, nothing that must be held in memory) are named once and ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mergeloom._version import __version__
from mergeloom.cli.errors import run_program
from mergeloom.cli.main import Flags, run_merge
from mergeloom.cli.sizes import Size, UserPath

CONFIG_FILE = click.argument("config_file", type=UserPath())
OUT_PATH = click.argument("out_path", type=UserPath())

WITHOUT_MEANING: Mapping[str, str] = {
    "lora_merge_cache": "no cache is needed",
    "lora_merge_dtype": "no cache is needed",
    "low_cpu_memory": "memory is bounded by --max-memory",
    "clone_tensors": "repeated layers are always written",
    "trust_remote_code": "no code of a model is run",
    "lazy_unpickle": "pickles are always read tensor by tensor",
    "read_to_gpu": "blocks go to the device one by one",
    "multi_gpu": "one device is used",
    "async_write": "reading, computing and writing always overlap",
    "write_threads": "every worker writes",
    "storage_device": "memory is bounded by --max-memory",
    "load_to_compute": "blocks go to the device one by one",
    "executor": "there is one executor",
}
SHARED = ("clone_tensors", "trust_remote_code", "lazy_unpickle")
MERGEKIT_ONLY = ("low_cpu_memory", "read_to_gpu", "multi_gpu", "async_write")


def mergekit_yaml() -> None:
    """Entry point of ``mergekit-yaml``."""
    run_program(mergekit_command)


def mergekitty_yaml() -> None:
    """Entry point of ``mergekitty-yaml``."""
    run_program(mergekitty_command)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _switch(name: str, default: bool = False, does: str = "") -> Callable[[Any], Any]:
    dashed = name.replace("_", "-")
    help_text = does or f"No effect: {WITHOUT_MEANING[name]}."
    return click.option(f"--{dashed}/--no-{dashed}", name, default=default, help=help_text)


def _ignored(name: str, **given: Any) -> Callable[[Any], Any]:
    help_text = f"No effect: {WITHOUT_MEANING[name]}."
    return click.option(f"--{name.replace('_', '-')}", help=help_text, **given)


COMMON = _options(
    CONFIG_FILE,
    OUT_PATH,
    _switch("allow_crimes", does="Merge models of different kinds as far as their tensors match."),
    *(_switch(name) for name in SHARED),
    click.option("--transformers-cache", type=UserPath(), help="Hugging Face cache to use."),
    _ignored("lora_merge_cache", type=click.Path()),
    click.option(
        "--out-shard-size",
        type=Size(),
        default="5B",
        show_default=True,
        help="Largest output file in bytes: 5B, 5GB, 5GiB, 500M.",
    ),
    click.option("--random-seed", type=int, help="Seed of random methods; 0 unless given."),
    _switch("copy_tokenizer", True, "Copy the base's tokenizer files; the default."),
    _switch("write_model_card", True, "Write README.md and the recipe; the default."),
    _switch("safe_serialization", True, "No effect: only safetensors are written."),
    _switch("quiet", does="Print only errors."),
    click.option("--lenient", is_flag=True, help="Ours: unknown keys are ignored."),
    click.option("--overwrite", is_flag=True, help="Ours: replace a folder that is not empty."),
    click.version_option(__version__),
)


@click.command()
@COMMON
@_options(
    *(_switch(name) for name in MERGEKIT_ONLY),
    _switch("unsafe_truncate_embeddings", does="Cut vocabulary tables to the smallest model's."),
    _ignored("lora_merge_dtype"),
    _switch("cuda", does="The same as --device cuda."),
    click.option("--device", help="cpu, cuda, cuda:1, mps, xpu or auto; cpu unless given."),
    click.option("--gpu-rich", is_flag=True, help="The same as --device cuda."),
    _ignored("write_threads", type=int),
    click.option(
        "-j",
        "--num-threads",
        type=click.IntRange(min=1),
        help="Workers; by default one for each core.",
    ),
    click.option("-v", "--verbose", count=True, help="Print the plan first."),
)
def mergekit_command(config_file: Path, out_path: Path, **given: Any) -> None:
    """Merge by a recipe, with mergekit-yaml's flags."""
    wants_gpu = given["cuda"] or given["gpu_rich"]
    device = given["device"] or ("cuda" if wants_gpu else "cpu")
    _run(config_file, out_path, given, device, given["num_threads"])


@click.command()
@COMMON
@_options(
    click.option(
        "--compute-device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        help="Where the arithmetic is done.",
    ),
    _ignored("storage_device", type=click.Choice(["cpu", "cuda"])),
    _switch("load_to_compute"),
    _ignored("executor", type=click.Choice(["single", "parallel"])),
    click.option("-v", "--verbose", is_flag=True, help="Print the plan first."),
)
def mergekitty_command(config_file: Path, out_path: Path, **given: Any) -> None:
    """Merge by a recipe, with mergekitty-yaml's flags."""
    _run(config_file, out_path, given, given["compute_device"], None)


def _run(
    recipe: Path, out: Path, given: Mapping[str, Any], device: str, threads: int | None
) -> None:
    if not given["quiet"]:
        _say_ignored(given)
    from mergeloom.planning import Options

    options = Options(
        out_shard_size=given["out_shard_size"],
        seed=given["random_seed"] or 0,
        lenient=given["lenient"],
        allow_crimes=given["allow_crimes"],
        unsafe_truncate_embeddings=given.get("unsafe_truncate_embeddings", False),
        copy_tokenizer=given["copy_tokenizer"],
        cache_dir=given["transformers_cache"],
    )
    flags = Flags(
        threads=threads,
        device=device,
        # Running a notebook cell again replaces the merge it made; other folders stay safe.
        overwrite=given["overwrite"] or _is_earlier_merge(out),
        card=given["write_model_card"],
        quiet=given["quiet"],
        verbose=bool(given["verbose"]),
    )
    run_merge(recipe, out, options, flags)


def _say_ignored(given: Mapping[str, Any]) -> None:
    for name, why in WITHOUT_MEANING.items():
        if given.get(name):
            click.echo(f"--{name.replace('_', '-')} has no effect: {why}", err=True)
    if not given["safe_serialization"]:
        click.echo("--no-safe-serialization has no effect: only safetensors are written", err=True)


def _is_earlier_merge(out: Path) -> bool:
    from mergeloom.output.directory import is_earlier_merge

    return out.is_dir() and is_earlier_merge(out)

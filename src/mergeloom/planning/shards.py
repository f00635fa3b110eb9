"""Which output tensor goes into which file at which byte, and the files' headers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.planning.plan import Job, Shard
from mergeloom.types import DTYPES, numel

HEADER_ALIGNMENT = 8


def weights_stem(config: Mapping[str, Any] | None) -> str:
    """How the weight files of a model begin: diffusers looks for other names than transformers."""
    return "diffusion_pytorch_model" if config and "_class_name" in config else "model"


def shard(jobs: Sequence[Job], limit: int, stem: str = "model") -> tuple[Shard, ...]:
    """Fill shards greedily in output order; a tensor above ``limit`` bytes gets its own.

    Inside a shard wider dtypes come first, so that every tensor is aligned to its element size.
    One shard is ``{stem}.safetensors``; several carry Hugging Face's numbered names.
    """
    groups: list[list[int]] = [[]]
    filled = 0
    for number, job in enumerate(jobs):
        if groups[-1] and filled + job.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += job.nbytes
    count = len(groups)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = [f"{stem}.safetensors"]
    return tuple(_shard(name, group, jobs) for name, group in zip(names, groups, strict=True))


def _shard(file: str, numbers: Sequence[int], jobs: Sequence[Job]) -> Shard:
    ordered = sorted(numbers, key=lambda n: -DTYPES[jobs[n].dtype].bytes)
    offsets, end = [], 0
    for number in ordered:
        offsets.append(end)
        end += jobs[number].nbytes
    return Shard(file, tuple(ordered), tuple(offsets), end)


def header(part: Shard, jobs: Sequence[Job], metadata: Mapping[str, str]) -> bytes:
    """The bytes before a shard's data: length, JSON, padded with spaces to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for number, offset in zip(part.jobs, part.offsets, strict=True):
        job = jobs[number]
        entries[job.name] = {
            "dtype": job.dtype,
            "shape": list(job.shape),
            "data_offsets": [offset, offset + job.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def index(shards: Sequence[Shard], jobs: Sequence[Job]) -> str | None:
    """The content of ``model.safetensors.index.json``, or None for a single shard."""
    if len(shards) == 1:
        return None
    placed = {jobs[n].name: part.file for part in shards for n in part.jobs}
    content = {
        "metadata": {
            "total_size": sum(part.data_bytes for part in shards),
            "total_parameters": sum(numel(job.shape) for job in jobs),
        },
        "weight_map": {job.name: placed[job.name] for job in jobs},
    }
    return json.dumps(content, indent=2) + "\n"

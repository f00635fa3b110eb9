"""Recipes over small models of one folder, planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from models import llama, llama_config, save

import mergeloom
from mergeloom import Job, Options, Plan

LAYERS = 4


def models_folder(folder: Path) -> Path:
    """Three llamas of four layers: A and B with a head, T tied."""
    for seed, name in enumerate("ABT"):
        tied = name == "T"
        save(folder / name, llama(LAYERS, seed, head=not tied),
             llama_config(LAYERS, tie_word_embeddings=tied))  # fmt: skip
    return folder


def at(folder: Path, recipe: str) -> Any:
    """The recipe with every single capital letter that is a model's value made its path."""

    def placed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {_path(k) if key == "input_model_parameters" else k: placed(v, k)
                    for k, v in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [placed(v) for v in value]
        return _path(value) if key in ("model", "base_model") else value

    def _path(name: str) -> str:
        return str(folder / name)

    return placed(yaml.safe_load(recipe))


def planned(folder: Path, recipe: str, **options: Any) -> Plan:
    return mergeloom.plan(at(folder, recipe), Options(**options))


def jobs(plan: Plan) -> dict[str, Job]:
    assert len({job.name for job in plan.jobs}) == len(plan.jobs)
    return {job.name: job for job in plan.jobs}


def sources(job: Job) -> list[str]:
    """``A:model.norm.weight`` for every input of a job, in order."""
    return [f"{Path(i.model).name}:{i.tensor}" for i in job.inputs]


def each(job: Job, name: str) -> list[Any]:
    """One parameter of every model that is not the base."""
    return [i.parameters[name] for i in job.inputs[job.has_base :]]

"""Every test of the command line works in its own folder, away from the hub and from a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from .models import model


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The current folder: empty, without a hub, with a cache that holds nothing."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return place


@pytest.fixture
def models(here) -> Path:
    """Three models that can be merged with each other: ``A``, ``B`` and ``base``."""
    for seed, name in enumerate(("A", "B", "base")):
        model(here / name, seed=seed)
    return here

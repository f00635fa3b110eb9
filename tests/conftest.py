"""What the tests of every folder share: settings of hypothesis, and small models on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from models import save

# Two cores are often shared: no example may fail for being slow.
settings.register_profile(
    "mergeloom",
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    # A landing must not depend on luck; everybody else's runs go on looking for new examples.
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("mergeloom")


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder below the test's own one and gives its path."""

    def write(
        name: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Path:  # fmt: skip
        return save(tmp_path / name, tensors, config, **more)

    return write

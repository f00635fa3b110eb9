"""The checkpoints of the matrix, one model type after the other; see ``case.py``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from matrix.case import Case
from matrix.cases import CASES


@dataclass(frozen=True)
class Pair:
    """Checkpoints ``a`` and ``b`` of one model type on disk, and both loaded again."""

    name: str
    case: Case
    a: Path
    b: Path
    models: tuple[Any, Any]


@pytest.fixture(scope="session")
def checkpoints() -> Iterator[Any]:
    """The functions that need transformers; importing it takes seconds."""
    import transformers

    from matrix import checkpoints

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small models only wait for more
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield checkpoints
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=CASES, ids=str)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoints: Any
) -> Iterator[Pair]:
    """All tests of a type share it; the files go when the next type comes."""
    name, case = request.param, CASES[request.param]
    folder = tmp_path_factory.mktemp(name)
    checkpoints.write_siblings(case, folder)
    a, b = folder / "A", folder / "B"
    models = tuple(complete(checkpoints, path, case) for path in (a, b))
    yield Pair(name, case, a, b, models)
    shutil.rmtree(folder)


@pytest.fixture
def loaded(checkpoints: Any, pair: Pair) -> Any:
    """Loads a folder as the pair's class; nothing may be missing or left over."""
    return lambda path: complete(checkpoints, path, pair.case)


def complete(checkpoints: Any, path: Path, case: Case) -> Any:
    model, found = checkpoints.load(path, case)
    assert found == {}
    return model

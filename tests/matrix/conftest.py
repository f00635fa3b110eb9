"""Two random siblings of every model type, written by transformers; see ``cases.py``."""

from __future__ import annotations

import json
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


def load(path: Path, case: Case) -> Any:
    """The model transformers makes of a folder; nothing may be missing or left over."""
    import transformers

    cls = getattr(transformers, case.cls)
    model, found = cls.from_pretrained(path, output_loading_info=True)
    assert {key: sorted(value) for key, value in found.items() if value} == {}
    return model.eval()


@pytest.fixture(scope="session")
def quiet_transformers() -> Any:
    import transformers

    torch.set_num_threads(1)  # such small models only wait for more

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session", params=CASES, ids=str)
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    quiet_transformers: Any,
) -> Iterator[Pair]:
    """Both tests of a type share it; the files go when the next type comes."""
    name, case = request.param, CASES[request.param]
    cls = getattr(quiet_transformers, case.cls)
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**case.config))
    for sibling in "AB":
        randomise(model)
        model.save_pretrained(folder / sibling)
        forget(folder / sibling / "config.json", case.drop)
    a, b = folder / "A", folder / "B"
    yield Pair(name, case, a, b, (load(a, case), load(b, case)))
    shutil.rmtree(folder)


def randomise(model: Any) -> None:
    """No two tensors alike: classes fill norms with ones and biases with zeros."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape) * 0.1)


def forget(path: Path, keys: tuple[str, ...]) -> None:
    if keys:
        config = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in config.items() if k not in keys}, indent=2))

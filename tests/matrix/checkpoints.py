"""Two random siblings of one model type, written and read by transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from matrix.case import Case

SIBLINGS = "AB"


def write_siblings(case: Case, folder: Path) -> None:
    """Folders ``A`` and ``B``: one configuration, different numbers in every tensor."""
    cls = getattr(transformers, case.cls)
    torch.manual_seed(0)
    model = cls(cls.config_class(**case.config))
    for sibling in SIBLINGS:
        _randomise(model)
        model.save_pretrained(folder / sibling)
        if case.older:
            path = folder / sibling / "config.json"
            path.write_text(json.dumps(_older(json.loads(path.read_text()), case.older), indent=2))


def load(path: Path, case: Case) -> tuple[Any, dict[str, list[str]]]:
    """The model that transformers makes of a folder, and what was missing, left over or unfit."""
    cls = getattr(transformers, case.cls)
    model, found = cls.from_pretrained(path, output_loading_info=True)
    return model.eval(), {key: sorted(map(str, value)) for key, value in found.items() if value}


def _randomise(model: Any) -> None:
    """No two tensors alike: classes fill norms with ones and biases with zeros."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape) * 0.1)


def _older(scope: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose scope with these keys is written in the older way."""
    made = {k: _older(v, keys) if isinstance(v, dict) else v for k, v in scope.items()}
    absent = {key for key, value in keys.items() if value is None}
    if absent & set(made):
        made |= keys
    return {key: value for key, value in made.items() if key not in absent}

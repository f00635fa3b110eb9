"""Random inputs of merges: shapes, number formats, special values, and numbers as parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import mergeloom

SHAPES = [(), (1,), (7,), (1000,), (0,), (0, 4), (3, 0), (1, 1), (5, 3), (1, 9), (64, 33),
          (2, 3, 4), (4, 1, 5), (2, 0, 3)]  # fmt: skip
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAMES = {None: None, torch.float64: "float64", torch.float32: "float32",
         torch.float16: "float16", torch.bfloat16: "bfloat16"}  # fmt: skip

shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)
numbers = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-3, -0.25, 2.0, 50.0]),
    st.floats(-4, 4).filter(lambda x: x == 0 or abs(x) > 1e-20),  # float32 has no smaller factors
)


def random_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0
) -> torch.Tensor:
    """Normal numbers with zeros of both signs and a few much larger and smaller ones among them."""
    random = np.random.default_rng(seed)
    values = np.asarray(random.standard_normal(shape)) * scale
    values = values * np.asarray(random.choice([1.0, 1.0, 1.0, 0.0, -0.0, 8.0, 2.0**-12], shape))
    return torch.from_numpy(np.array(values)).to(dtype)


def exact(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def one_tensor(
    method: str,
    tensors: Sequence[torch.Tensor],
    each: Sequence[Mapping[str, Any]],
    *,
    base: torch.Tensor | None = None,
    base_listed: bool = True,
    out: torch.dtype | None = None,
    **shared: Any,
) -> torch.Tensor:
    """Merge single tensors; the models are m0, m1, …, and ``base``, which is listed second."""
    models: list[dict[str, Any]] = [
        {"model": f"m{i}", "parameters": dict(p)} for i, p in enumerate(each)
    ]
    given = {f"m{i}": {"w": t} for i, t in enumerate(tensors)}
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "parameters": shared}
    if base is not None:
        recipe["base_model"] = "base"
        given["base"] = {"w": base}
        if base_listed:
            models.insert(1, {"model": "base"})
    if out is not None:
        recipe["dtype"] = NAMES[out]
    before = {name: held["w"].clone() for name, held in given.items()}
    merged = mergeloom.merge_state_dicts(recipe, given)
    for name, held in given.items():
        assert same_bits(held["w"], before[name]), f"{name} was changed"
    assert list(merged) == ["w"]
    return merged["w"]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit: also −0 and 0 differ."""
    kind = (a.dtype, a.shape) == (b.dtype, b.shape)
    return kind and raw(a) == raw(b)


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""

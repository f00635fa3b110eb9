"""The recipes that `parity.py` runs through both tools, and why results may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

INTRODUCTION = """\
# The same numbers as mergekit

Both tools ran every recipe below on the same tiny models (a Llama of 2 layers, 256 wide, random
numbers; the fine-tunes differ from the base by 30 to 90 % of its size, or by 0.5 to 2 % where the
setting says *small changes*). Methods that choose at random are left out: no two tools draw the
same numbers.

- **largest difference**: on float32 models, the largest absolute difference of any element.
- **beyond rounding**: the share of elements that are further apart than two roundings to float32.
- **error**: on float32 models, the largest distance of any element from the float64 result.
- **bf16**: on bfloat16 models, the share of elements equal to the float64 result rounded once.
  mergeloom computes in float32 and rounds once; mergekit mostly computes in bfloat16. Where round
  parameters put many results exactly between two bfloat16 numbers, either neighbour is right.
- **why**: the reason for differences that are not rounding.

The float64 result is mergeloom's own with `dtype: float64`, which the tests hold against plain
formulas that share no code with it.

To write this page again: `python benchmarks/peer.py setup`, then
`python benchmarks/parity.py --out docs/parity.md`.
"""

GUARD = (
    "mergekit weighs all models the same where changes are small (their mean squares add up to "
    "less than 1e-6); the reference of the method does not, and neither do we"
)
QUARTILES = (
    "mergekit takes the quartiles of more than 10⁶ scores from a random sample, and divergences in "
    "the models' precision, where small ones are lost; ours are exact"
)
SUMS = "mergekit takes norms and inner products in float32, ours in float64: see the two errors"
THREE = (0.5123, 0.2871, 0.3719)
"""Not 0.5, 0.3, 0.4: those put many results exactly between two bfloat16 numbers."""
NEAR = "a step of the formula (a threshold) that rounding decides"


@dataclass(frozen=True)
class Setting:
    """One recipe: models with their parameters, shared parameters and the base.

    ``why`` is the reason for a difference that is not rounding.
    """

    method: str
    label: str
    models: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    why: str = ""
    peer_fails: bool = False


def weighted(
    *values: float, models: Sequence[str] = "abc", **more: Any
) -> dict[str, dict[str, Any]]:
    """Return models with a weight each and the same other parameters."""
    return {m: {"weight": w, **more} for m, w in zip(models, values, strict=False)}


def plain(*models: str) -> dict[str, dict[str, Any]]:
    """Return models without parameters of their own."""
    return {m: {} for m in models}


def family(method: str, label: str, *values: float, why: str = "", **settings: Any) -> Setting:
    """Return a setting of the methods that add up task vectors."""
    own = {k: settings.pop(k) for k in ("density", "gamma") if k in settings}
    return Setting(method, label, weighted(*values, **own), settings, "base", why)


def several() -> list[Setting]:
    """Return the settings of the methods that add up task vectors."""
    found = []
    for method, extra in (("ties", {}), ("breadcrumbs", {"gamma": 0.1}),
                          ("breadcrumbs_ties", {"gamma": 0.1})):  # fmt: skip
        for density in (0.05, 0.5, 0.9, 1.0):
            label = f"density {density:g}"
            found.append(family(method, label, *THREE, density=density, **extra))
        more = {"density": 0.5, **extra}
        found += [
            family(method, "density 0.5, rescale", *THREE, rescale=True, **more),
            family(method, "density 0.5, normalize off", *THREE, normalize=False, **more),
            family(method, "density 0.5, normalize on", *THREE, normalize=True, **more),
            family(method, "density 0.5, lambda 0.7", *THREE, **{**more, "lambda": 0.7}),
            family(method, "density 0.5, a negative weight", 0.7, -0.3, 0.4, why=NEAR, **more),
        ]
    found += [
        family("ties", "density 0", *THREE, density=0.0),
        family("ties", "density 1e-6 (one element)", *THREE, density=1e-6),
        family("breadcrumbs", "density 0.5, gamma 0", *THREE, density=0.5, gamma=0.0),
        family("breadcrumbs", "density 0.8, gamma 0.6", *THREE, density=0.8, gamma=0.6),
    ]
    for method in ("dare_linear", "dare_ties", "della_linear", "della"):
        found.append(family(method, "density 1 (nothing is dropped)", *THREE, density=1.0))
    return found


SETTINGS = [
    Setting("linear", "three weights", weighted(*THREE)),
    Setting("linear", "normalize off", weighted(*THREE), {"normalize": False}),
    Setting("linear", "a negative weight", weighted(1.5, -0.5)),
    *(Setting("slerp", f"t {t:g}", plain("base", "a"), {"t": t}, "base", SUMS)
      for t in (0.0, 0.3, 0.5, 1.0, 1.5)),
    Setting("slerp", "t 0.3, small changes", plain("base", "s1"), {"t": 0.3}, "base"),
    Setting("nuslerp", "weights 0.3, 0.7", weighted(0.3, 0.7)),
    Setting("nuslerp", "with a base", weighted(0.3, 0.7), {}, "base"),
    Setting("nuslerp", "a vector for each row", weighted(0.3, 0.7), {"nuslerp_flatten": False}),
    Setting("nuslerp", "a vector for each column", weighted(0.3, 0.7),
            {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    Setting("multislerp", "three weights", weighted(*THREE)),
    Setting("multislerp", "with a base", weighted(*THREE), {}, "base"),
    Setting("multislerp", "normalize_weights off", weighted(*THREE),
            {"normalize_weights": False}),
    Setting("multislerp", "with a base; no model changed the norms",
            weighted(*THREE, models=["u1", "u2", "u3"]), {}, "base",
            "mergekit stops at a tensor that no model changed; ours keeps the base there", True),
    Setting("karcher", "default", plain("a", "b", "c")),
    Setting("karcher", "max_iter 1", plain("a", "b", "c"), {"max_iter": 1}),
    Setting("karcher", "tol 0.01", plain("a", "b", "c"), {"tol": 0.01}),
    Setting("model_stock", "three models", plain("a", "b", "c"), {}, "base"),
    Setting("model_stock", "two models, filter_wise", plain("a", "b"), {"filter_wise": True},
            "base", NEAR),
    Setting("model_stock", "small changes", plain("s1", "s2", "s3"), {}, "base"),
    Setting("task_arithmetic", "three weights", weighted(*THREE), {}, "base"),
    Setting("task_arithmetic", "normalize on, lambda 0.7", weighted(*THREE),
            {"normalize": True, "lambda": 0.7}, "base"),
    *several(),
    Setting("sce", "select_topk 1", plain("a", "b", "c"), {}, "base"),
    *(Setting("sce", f"select_topk {k:g}", plain("a", "b", "c"), {"select_topk": k}, "base", NEAR)
      for k in (0.0, 0.1, 0.5, 0.9)),
    Setting("sce", "select_topk 1, small changes", plain("s1", "s2", "s3"), {}, "base", GUARD),
    *(Setting("nearswap", f"t {t:g}", plain("a"), {"t": t}, "base")
      for t in (0.0, 1e-3, 0.01, 1.0)),
    Setting("arcee_fusion", "", plain("a"), {}, "base", QUARTILES),
    Setting("arcee_fusion", "small changes", plain("s3"), {}, "base", QUARTILES),
    *(Setting("ram", f"epsilon {e:g}", plain("a", "b", "c"), {"epsilon": e}, "base")
      for e in (1e-5, 0.01)),
    *(Setting("ramplus_tl", f"epsilon {e:g}", plain("a", "b", "c"), {"epsilon": e}, "base")
      for e in (1e-5, 0.01)),
    Setting("ramplus_tl", "r 0.5, alpha 2", plain("a", "b", "c"),
            {"epsilon": 0.01, "r": 0.5, "alpha": 2.0}, "base"),
    Setting("passthrough", "scale 0.7", {"a": {"scale": 0.7}}),
]  # fmt: skip

"""Method declarations for the tests of recipes, shaped like those of mergeloom.methods."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    name: str
    help: str = "what it does"
    kind: str = "float"
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    per_model: bool = False


@dataclass(frozen=True)
class Method:
    parameters: tuple[Parameter, ...] = ()


WEIGHT = Parameter("weight", per_model=True)
DENSITY = Parameter("density", low=0, high=1, per_model=True)
EPSILON = Parameter("epsilon", low=0, high=1, per_model=True)
NORMALIZE = Parameter("normalize", kind="bool")
RESCALE = Parameter("rescale", kind="choice", choices=("true", "density", "false"))
INT8 = Parameter("int8_mask", kind="bool")
LAMBDA = Parameter("lambda")
TASK = (WEIGHT, DENSITY, NORMALIZE, RESCALE, INT8, LAMBDA)

METHODS = {
    "linear": Method((WEIGHT, NORMALIZE)),
    "slerp": Method((Parameter("t"),)),
    "dare_ties": Method(TASK),
    "della_linear": Method((*TASK, EPSILON)),
    "passthrough": Method((Parameter("scale", per_model=True),)),
    "karcher": Method((Parameter("tol", low=0), Parameter("max_iter", kind="int", low=1))),
    "model_stock": Method((Parameter("filter_wise", kind="bool"),)),
    "sce": Method((Parameter("select_topk", low=0, high=1),)),
}

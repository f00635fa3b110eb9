"""Merge methods: formulas and their declarations. A new method is one function in one file."""

from mergeloom.methods import spherical, sums  # noqa: F401 (registering is what they are for)
from mergeloom.methods.declaration import (
    Arguments,
    Formula,
    Method,
    MethodError,
    Note,
    Parameter,
    WeightedSum,
)
from mergeloom.methods.registry import METHODS, method

__all__ = [
    "METHODS",
    "Arguments",
    "Formula",
    "Method",
    "MethodError",
    "Note",
    "Parameter",
    "WeightedSum",
    "method",
]

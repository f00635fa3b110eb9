"""Merge methods: formulas and their declarations. A new method is one function in one file."""

from mergeloom.methods import geometric, selective, sparse, spherical, sums  # noqa: F401 (register)
from mergeloom.methods.declaration import (
    Arguments,
    Block,
    Elementwise,
    Formula,
    Largest,
    Method,
    MethodError,
    Note,
    Parameter,
    Totals,
    WeightedSum,
    passes,
)
from mergeloom.methods.registry import METHODS, method

__all__ = [
    "METHODS",
    "Arguments",
    "Block",
    "Elementwise",
    "Formula",
    "Largest",
    "Method",
    "MethodError",
    "Note",
    "Parameter",
    "Totals",
    "WeightedSum",
    "method",
    "passes",
]

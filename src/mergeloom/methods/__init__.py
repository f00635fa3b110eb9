"""Merge methods: formulas and their declarations. A new method is one function in one file."""

from mergeloom.methods import (  # noqa: F401 - importing them registers their methods
    geometric,
    overlap,
    selective,
    sparse,
    spherical,
    sums,
)
from mergeloom.methods.declaration import (
    UNCHANGED,
    Arguments,
    Block,
    Elementwise,
    Formula,
    Largest,
    Method,
    MethodError,
    Note,
    Parameter,
    Sums,
    Totals,
    Values,
    WeightedSum,
    passes,
)
from mergeloom.methods.registry import METHODS, method

__all__ = [
    "METHODS",
    "UNCHANGED",
    "Arguments",
    "Block",
    "Elementwise",
    "Formula",
    "Largest",
    "Method",
    "MethodError",
    "Note",
    "Parameter",
    "Sums",
    "Totals",
    "Values",
    "WeightedSum",
    "method",
    "passes",
]

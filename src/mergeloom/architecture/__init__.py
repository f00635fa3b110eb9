"""What a model is made of, from tensor names, shapes and raw config.json: no list of families."""

from mergeloom.architecture.layout import Layout, Place, has_own_dtype, is_buffer, understand
from mergeloom.architecture.names import Alignment, align
from mergeloom.architecture.sources import Source, plain
from mergeloom.architecture.stacks import Stack

__all__ = [
    "Alignment",
    "Layout",
    "Place",
    "Source",
    "Stack",
    "align",
    "has_own_dtype",
    "is_buffer",
    "plain",
    "understand",
]

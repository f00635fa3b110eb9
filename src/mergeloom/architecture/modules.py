"""The named parts of a model with several stacks: text, vision, audio, encoder, decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergeloom.architecture.layout import Layout
from mergeloom.architecture.stacks import Stack, family

PROJECTOR = re.compile(r"projector|merger|connector|modality_projection")
ALIASES: Mapping[str, str] = {
    "default": "text",
    "text": "text",
    "text_decoder": "text",
    "text_model": "text",
    "language_model": "text",
    "vision": "vision",
    "vision_tower": "vision",
    "vision_model": "vision",
    "visual": "vision",
    "audio": "audio",
    "audio_tower": "audio",
    "projector": "projector",
    "multi_modal_projector": "projector",
    "encoder": "encoder",
    "decoder": "decoder",
    "shared": "shared",
}
"""Module name in a recipe (ours and the peers') → the part of the model it means."""


def is_encoder_decoder(layout: Layout) -> bool:
    """Whether the model has a text encoder and a text decoder stack."""
    kinds = {_half(s.prefix) for s in layout.stacks if family(s.prefix) != "vision"}
    return {"encoder", "decoder"} <= kinds


def part_of(layout: Layout, name: str) -> str:
    """The part one tensor belongs to."""
    for module, prefixes in layout.row.modules.items():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return module
    if is_encoder_decoder(layout):
        return _half(name) or "shared"
    kind = family(name)
    if kind == "text" and layout.place(name).stack is None and PROJECTOR.search(name):
        return "projector"
    main = layout.main
    if main and family(main.prefix) == kind:
        return "text"
    return kind


def module_tensors(layout: Layout, module: str) -> tuple[str, ...]:
    """The tensors of a module by its recipe name or by a raw name prefix; () if unknown."""
    parts = {name: part_of(layout, name) for name in layout.shapes}
    wanted = module if module in layout.row.modules else ALIASES.get(module)
    if wanted == "decoder" and not is_encoder_decoder(layout):
        wanted = "text"
    found = tuple(name for name, part in parts.items() if part == wanted)
    return found or tuple(name for name in layout.shapes if name.startswith(f"{module}."))


def module_names(layout: Layout) -> tuple[str, ...]:
    """The names a recipe can use for this model's modules."""
    return tuple(dict.fromkeys(part_of(layout, name) for name in layout.shapes))


def module_stack(layout: Layout, tensors: tuple[str, ...]) -> Stack | None:
    """The stack that slices of a module mean: the main one, else the largest inside it."""
    sizes: dict[Stack, int] = {}
    for name in tensors:
        if stack := layout.place(name).stack:
            sizes[stack] = sizes.get(stack, 0) + 1
    if layout.main in sizes:
        return layout.main
    return max(sizes, key=lambda stack: sizes[stack], default=None)


def _half(name: str) -> str:
    """``encoder`` or ``decoder`` by the first segment that says so, else an empty text."""
    return next((s for s in name.split(".") if s in ("encoder", "decoder")), "")

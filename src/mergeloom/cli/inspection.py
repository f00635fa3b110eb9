"""An inspection in words, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.cli.sizes import show_size
from mergeloom.inspection import Inspection, StackFound
from mergeloom.types import DTYPES

SHOWN = 8


def inspection_text(found: Inspection) -> str:
    """Everything about one model, a fact a line."""
    return "\n".join(_lines(found))


def inspection_json(found: Inspection) -> dict[str, Any]:
    """Everything :func:`inspection_text` says, for programs."""
    given = dataclasses.asdict(found)
    given["dtypes"] = {DTYPES[name].torch_name: size for name, size in found.dtypes.items()}
    return {**given, "warnings": [str(warning) for warning in found.warnings]}


def _lines(found: Inspection) -> Iterator[str]:
    kind = ", ".join(filter(None, [found.architecture, found.model_type])) or "no config.json"
    revision = f" @ {found.revision}" if found.revision else ""
    yield f"{found.label}{revision}: {kind}"
    yield f"  {found.parameters:,} parameters, {found.tensors} tensors, {show_size(found.nbytes)}"
    sizes = [f"{DTYPES[name].torch_name} {show_size(n)}" for name, n in found.dtypes.items()]
    yield f"  dtypes: {', '.join(sizes)}"
    if found.quantization:
        yield f"  quantized: {found.quantization}"
    yield "layers"
    for stack in found.stacks:
        yield from _stack(stack)
    if not found.stacks:
        yield "  none"
    yield "vocabulary"
    yield from (f"  input embedding {n} {list(s)}" for n, s in found.embeddings.items())
    yield from (f"  head {n} {list(s)}" for n, s in found.heads.items())
    others = [n for n in found.vocabulary if n not in {**found.embeddings, **found.heads}]
    yield from (f"  also indexed by tokens: {n}, axis {found.vocabulary[n]}" for n in others)
    if found.tied:
        yield "  the head is the input embedding (tied)"
    if not found.vocabulary:
        yield "  none"
    yield "modules"
    for module in found.modules:
        yield f"  {module.name}: {module.tensors} tensors, {module.parameters:,} parameters"
    yield from _names("copied, never averaged", found.copied)
    yield from _names("not recognised, merged by name", found.unrecognised)
    yield from _names("side files", found.side_files)


def _stack(stack: StackFound) -> Iterator[str]:
    where = f"config {stack.count_key}" if stack.count_key else "no count in config: not sliceable"
    main = ", main" if stack.is_main else ""
    extra = f", and {stack.extra} multi-token-prediction layers" if stack.extra else ""
    yield f"  {stack.prefix}.0-{stack.length - 1} ({where}; module {stack.module}{main}){extra}"
    if len(stack.kinds) > 1:
        for tensors, layers in stack.kinds:
            yield f"    {tensors} tensors in layers {_ranges(layers)}"


def _ranges(layers: Sequence[int]) -> str:
    """``0-2, 5, 8``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans)


def _names(title: str, names: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    if not names:
        return
    yield f"{title} ({len(names)})"
    shown = list(names)[:SHOWN]
    yield from (f"  {name}" for name in shown)
    if len(names) > SHOWN:
        yield f"  ... and {len(names) - SHOWN} more (--json has all)"

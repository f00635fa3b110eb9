"""The tensors of a checkpoint while the families of formats take those they understand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.views import read_bytes
from mergeloom.types import DTYPES_BY_TORCH_NAME, View, numel

CONFIG_KEYS = ("quantization_config", "compression_config")


@dataclass
class Pool:
    """What is left of a checkpoint's tensors, and the views made so far.

    Args:
        left: name → stored tensor; a family takes codes and companions out.
        settings: the config's own description of the quantization, {} without one.
        saved_dtype: the model's own float dtype.
        model_type: the config's, or an empty text.
        shown: how messages call the checkpoint.
        report: receives the mistakes.
        made: name → dequantizing view.
        kinds: what was found, in words, in order of appearance.
    """

    left: dict[str, View]
    settings: Mapping[str, Any]
    saved_dtype: str
    model_type: str
    shown: str
    report: Report
    made: dict[str, View] = field(default_factory=dict)
    kinds: dict[str, None] = field(default_factory=dict)

    def ending(self, suffix: str) -> Iterator[str]:
        """The stems of the names that end like this, in order; they may be taken meanwhile."""
        for name in [n for n in self.left if n.endswith(suffix)]:
            if name in self.left:
                yield name.removesuffix(suffix)

    def take(self, name: str) -> View | None:
        """A tensor that its family accounts for, or None."""
        return self.left.pop(name, None)

    def put(self, name: str, view: View, kind: str) -> None:
        """A tensor that is dequantized while reading."""
        self.made[name] = view
        self.kinds.setdefault(kind)

    def wrong(self, name: str, view: View | None, message: str) -> None:
        """Something about one tensor that does not fit the format."""
        place = f" in {view.files[0].name}" if view is not None and view.files else ""
        self.report.error(
            f"{self.shown}: tensor {name}{place} {message}",
            "It is damaged or stored in a way that is not known here: use the original weights",
        )

    def fits(self, name: str, view: View | None, *shapes: tuple[int, ...]) -> bool:
        """Whether a companion is there and has one of the shapes its codes need."""
        if view is None:
            self.wrong(name, None, f"is missing; shape {list(shapes[0])} is needed")
            return False
        if view.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            self.wrong(name, view, f"has shape {list(view.shape)}, not {wanted}")
            return False
        return True


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization's description in a config.json, at whatever depth it stands."""
    for key in CONFIG_KEYS:
        found = config.get(key)
        if isinstance(found, Mapping) and found:
            inner = found.get("quantization_config")  # of a compression_config
            return inner if isinstance(inner, Mapping) else found
    for value in config.values():
        if isinstance(value, Mapping) and (inner := quantization_settings(value)):
            return inner
    return {}


def own_dtype(config: Mapping[str, Any]) -> str:
    """The model's own float dtype: what config.json says, else BF16."""
    scopes = [config, *(v for v in config.values() if isinstance(v, Mapping))]
    for scope in scopes:
        for key in ("dtype", "torch_dtype"):
            said = scope.get(key)
            name = said.removeprefix("torch.") if isinstance(said, str) else ""
            known = DTYPES_BY_TORCH_NAME.get(name)
            if known is not None and known.is_float and known.bytes > 1:
                return known.name
    return "BF16"


def content(view: View) -> bytes:
    """The bytes of a small tensor, read at once and, from a file, without torch."""
    return bytes(read_bytes(view, 0, numel(view.shape), _Once(), None))


class _Once:
    """Memory for one read."""

    def bytes(self, _key: object, nbytes: int) -> memoryview:
        """New memory."""
        return memoryview(bytearray(nbytes))

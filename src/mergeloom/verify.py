"""A plan held against transformers: would the class of the output's config load what is written?

This needs transformers and torch, and only runs when it is asked for. transformers loads the
plan's names and shapes on the meta device, with all the renaming it does for a real file: no
weight is read or made, and no code of a checkpoint is run.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergeloom.checkpoint.views import torch_dtype
from mergeloom.errors import CheckpointError, Problems, first_few
from mergeloom.planning import Plan

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name → (dtype, shape)."""


class NotVerifiedError(Exception):
    """transformers is missing, has no such class, or cannot build it: the reason in words."""


@dataclass(frozen=True)
class Misfits:
    """What a class of transformers finds wrong with a checkpoint; all empty when it loads.

    Args:
        missing: tensors of the class that the checkpoint lacks, in the class's names.
        unexpected: tensors of the checkpoint that the class does not know.
        misshapen: tensors with another shape: name, the checkpoint's shape, the class's.
        failure: why nothing could be loaded at all, or an empty text.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    failure: str = ""

    def beyond(self, other: Misfits) -> Misfits:
        """Without what ``other`` has too."""
        return Misfits(
            tuple(n for n in self.missing if n not in other.missing),
            tuple(n for n in self.unexpected if n not in other.unexpected),
            tuple(m for m in self.misshapen if m not in other.misshapen),
            self.failure,
        )


def verify(plan: Plan) -> tuple[str, ...]:
    """Load a plan's names and shapes into the class that its config.json names.

    Faults that the donor's own files have too are returned, not raised.

    Args:
        plan: its chain is not looked at.

    Returns:
        What could not be verified and what the donor lacks itself, in sentences.

    Raises:
        CheckpointError: the class would not load the result as it is planned.
    """
    if plan.config is None:
        return ("without a config.json there is no class to load the result with",)
    try:
        found = misfits(plan.config, {job.name: (job.dtype, job.shape) for job in plan.jobs})
    except NotVerifiedError as reason:
        return (f"not verified: {reason}",)
    if found == Misfits():
        return ()
    own = Misfits()
    donor = next(c for c in plan.inputs if c.label == plan.donor)
    with contextlib.suppress(NotVerifiedError):
        own = misfits(donor.config or {}, {n: (v.dtype, v.shape) for n, v in donor.tensors.items()})
    problems = Problems()
    name = plan.config["architectures"][0]
    for sentence in _sentences(found.beyond(own)):
        problems.error("--verify", f"{name} would not load the result: {sentence}")
    problems.raise_errors(CheckpointError)
    return tuple(f"{plan.donor}, as it is: {sentence}" for sentence in _sentences(own))


def misfits(config: Mapping[str, Any], tensors: Tensors) -> Misfits:
    """What the class of a raw config.json finds wrong with these tensors.

    Raises:
        NotVerifiedError: the class cannot be built here.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise NotVerifiedError(
            "transformers is not installed (pip install 'mergeloom[transformers]')"
        ) from error
    kind, settings = _class_of(config, transformers)
    state = {
        name: torch.empty(shape, dtype=torch_dtype(dtype), device="meta")
        for name, (dtype, shape) in tensors.items()
    }
    with _quiet(transformers):
        try:
            _, found = kind.from_pretrained(
                None, config=settings, state_dict=state, output_loading_info=True,
                ignore_mismatched_sizes=True, device_map="meta",
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - of its config, or of its conversions
            _build(kind, settings)
            return Misfits(failure=_first_line(error))
    return Misfits(
        tuple(sorted(found["missing_keys"])),
        tuple(sorted(found["unexpected_keys"])),
        tuple(sorted((n, tuple(a), tuple(b)) for n, a, b in found["mismatched_keys"])),
    )


def _build(kind: Any, settings: Any) -> None:
    """Build the class without tensors: when that fails too, they are not at fault."""
    import torch

    try:
        with torch.device("meta"):
            kind(settings)
    except Exception as error:
        what = f"transformers cannot build {kind.__name__}: {_first_line(error)}"
        raise NotVerifiedError(what) from error


def _class_of(config: Mapping[str, Any], transformers: Any) -> tuple[Any, Any]:
    """The class of ``architectures`` and its configuration object."""
    name = str((config.get("architectures") or [""])[0])
    kind = getattr(transformers, name, None) if name else None
    if kind is None or not hasattr(kind, "config_class"):
        version = f"transformers {transformers.__version__}"
        raise NotVerifiedError(
            f"{version} has no class {name}" if name else "config.json has no architectures"
        )
    with _quiet(transformers):
        try:
            settings = kind.config_class or transformers.AutoConfig
            return kind, settings.from_dict(decoded(config))
        except Exception as error:
            what = f"transformers refuses config.json: {_first_line(error)}"
            raise NotVerifiedError(what) from error


def decoded(value: Any) -> Any:
    """JSON with the infinities and NaN that transformers writes as ``{"__float__": ...}``."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: decoded(inner) for key, inner in value.items()}
    return [decoded(inner) for inner in value] if isinstance(value, list) else value


def _sentences(found: Misfits) -> Iterator[str]:
    if found.failure:
        yield found.failure
    if found.missing:
        yield f"missing {_listed(found.missing)}"
    if found.unexpected:
        yield f"not known to the class {_listed(found.unexpected)}"
    if found.misshapen:
        shown = [f"{n} {list(a)}, wanted {list(b)}" for n, a, b in found.misshapen]
        yield f"of another shape {_listed(shown)}"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    count = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    return f"{count}: {first_few(names)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence transformers' reports and progress bars: nothing is really loaded."""
    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()

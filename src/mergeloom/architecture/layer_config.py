"""config.json of a model whose layers were picked, repeated or reordered.

The scope is the mapping that owns the layer count. Everything in it that speaks of single layers
is rewritten; keys that are unknown or not about layers stay as they are, in their order.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergeloom.architecture.stacks import COUNT_KEYS, LAYER_LIST_KEYS, Stack, family, leaves, lookup

Scope = Mapping[str, Any]
Selection = Sequence[tuple[Scope, int]]
"""For every output layer: the scope of the source's config.json and the source layer's index."""

INDEX_LIST = re.compile(r"(idx|idxs|indices|index|indexes|ids|layers|locations)$")
# Lists that speak of something else, however long they are (five multipliers of Falcon-H1).
NOT_LAYERS = re.compile(r"multipliers$|token_ids?$|section$|pinpoints$|^(image|patch)_size$")
# Layers that use the keys and values of others: no order but their own is known to work.
SHARED_ACROSS_LAYERS = re.compile(r"^(num_kv_shared_layers|kv_source_layers)$")
# Outputs of layers of a vision tower that the rest of the model reads, by their number.
FEATURE_LAYERS = re.compile(r"^vision_feature_layers?$")
LAST_LAYER = re.compile(r"layer_end_index$")
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


def count_scope(config: Mapping[str, Any], stack: Stack) -> Scope:
    """The mapping that owns the stack's layer count (the top level when none is written)."""
    return lookup(config, stack.count_key[:-1]) if stack.count_key else config


def select_layers(
    config: Mapping[str, Any], stack: Stack, selection: Selection, *, keep: Sequence[Stack] = ()
) -> dict[str, Any]:
    """config.json with the layers of ``stack`` replaced by ``selection``.

    Args:
        config: the donor's raw config.json; it is not changed.
        stack: the donor's stack that was rebuilt.
        selection: the source of every output layer, in output order.
        keep: the other stacks; their count keys are left alone.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    if stack.count_key is None:
        return result
    scope: dict[str, Any] = result
    for key in stack.count_key[:-1]:
        scope = scope[key]
    old = stack.length
    others = {s.count_key for s in keep}
    for key, derive in _derived_lists(scope).items():
        per_layer = [derive(source, index) for source, index in selection]
        # No list is needed where the class derives the right one from the new positions.
        if not _is_written(scope, key, derive) and per_layer != [
            derive(scope, j) for j in range(len(selection))
        ]:
            scope[key] = _written_out(derive, scope, old)
    paired = paired_lists(scope, stack, keep)
    for key, value in list(scope.items()):
        if (*stack.count_key[:-1], key) in others:
            continue
        if isinstance(value, list) and _is_of_encoder(key, stack, keep):
            continue
        rewritten = (
            first_positions(value, [index for _, index in selection])
            if key in paired
            else _rewrite(key, value, old, selection, count=stack.count_key[-1])
        )
        if rewritten is not None:
            scope[key] = rewritten
    scope.setdefault(stack.count_key[-1], len(selection))
    for path, states, _ in feature_layers(config, stack, [index for _, index in selection]):
        owner = result
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = states
    return result


def _is_of_encoder(key: str, stack: Stack, others: Sequence[Stack]) -> bool:
    """Whether a list beside both an encoder's and a decoder's count speaks of the encoder.

    LED's ``attention_window``: what is not called a decoder's is the encoder's.
    """
    beside = [s.count_key for s in others if s.count_key]
    return (
        stack.count_key is not None
        and "decoder" in stack.count_key[-1]
        and "decoder" not in key
        and any(path[:-1] == stack.count_key[:-1] and "encoder" in path[-1] for path in beside)
    )


def feature_layers(
    config: Scope, stack: Stack, order: Sequence[int]
) -> tuple[tuple[tuple[str, ...], Any, tuple[int, ...]], ...]:
    """Keys that name outputs of a vision tower's layers, for an order of these layers.

    State 0 is the tower's input and state i the output of layer i − 1; negative ones count from
    the end and stay.

    Returns:
        (path of the key, its new value, layers that it reads and that are left out).
    """
    if family(stack.prefix) != "vision":
        return ()
    found = []
    for path, value in leaves(config):
        states = value if isinstance(value, list) else [value]
        if not FEATURE_LAYERS.search(path[-1] if path else "") or not all(
            type(state) is int for state in states
        ):
            continue
        lost = tuple(s - 1 for s in states if s > 0 and s - 1 not in order)
        moved = [s if s <= 0 or s - 1 in lost else order.index(s - 1) + 1 for s in states]
        found.append((path, moved if isinstance(value, list) else moved[0], lost))
    return tuple(found)


def paired_lists(scope: Scope, stack: Stack, others: Sequence[Stack]) -> tuple[str, ...]:
    """Keys of lists of layer numbers to each of which a module of its own belongs.

    Qwen3-VL's ``deepstack_visual_indexes``: one merger for each. There are as many modules as
    before, so a layer that is repeated counts once.
    """
    groups = {s.length for s in others
              if s.count_key is None and family(s.prefix) == family(stack.prefix)}  # fmt: skip
    return tuple(
        key
        for key, value in scope.items()
        if isinstance(value, list)
        and len(value) in groups
        and _is_index_list(key, value, stack.length)
    )


def first_positions(indices: Sequence[int], order: Sequence[int]) -> list[int]:
    """For every source layer of a list its first place in the output; those left out are missing.

    The list keeps its order, because the module that belongs to an entry stays where it is.
    """
    return [order.index(index) for index in indices if index in order]


def layer_labels(scope: Scope, length: int) -> list[tuple[tuple[str, str], ...]]:
    """For every layer what its config's per-layer lists, written or derived, say about it."""
    lists = _derived_lists(scope)
    derived = {key: [derive(scope, i) for i in range(length)] for key, derive in lists.items()}
    written = {key: value for key, value in scope.items()
               if key not in derived or _is_written(scope, key, lists[key])}  # fmt: skip
    columns = [(key, _column(key, value, length)) for key, value in {**derived, **written}.items()]
    return [
        tuple((key, str(column[i])) for key, column in columns if column is not None)
        for i in range(length)
    ]


def _column(key: str, value: Any, length: int) -> Sequence[Any] | None:
    """One entry for each layer, or None for a value that is not about single layers."""
    if NOT_LAYERS.search(key):
        return None
    if isinstance(value, list) and _is_index_list(key, value, length):
        return [i in value for i in range(length)]
    if isinstance(value, list) and len(value) == length:
        return value
    if isinstance(value, list) and key in LAYER_LIST_KEYS and 0 < len(value) < length:
        return [value[i % len(value)] for i in range(length)]
    if isinstance(value, str) and len(value) == length and "pattern" in key:
        return value
    return None


def _rewrite(key: str, value: Any, old: int, selection: Selection, *, count: str) -> Any:
    """The new value of one key of the scope, or None to leave it."""
    new = len(selection)
    if NOT_LAYERS.search(key):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if LAST_LAYER.search(key):
            return new - 1 if value == old - 1 else None
        # Whisper writes the encoder's count twice, as encoder_layers and num_hidden_layers.
        return new if value == old and (key == count or key in COUNT_KEYS) else None
    if isinstance(value, list) and _is_index_list(key, value, old):
        lists = [_of(source, key) for source, _ in selection]
        return [
            j
            for j, ((_, i), theirs) in enumerate(zip(selection, lists, strict=True))
            if i in (value if theirs is None else theirs)
        ]
    if isinstance(value, list) and len(value) == old:
        return [_pick(_of(source, key), value, i) for source, i in selection]
    if isinstance(value, list) and key in LAYER_LIST_KEYS and 0 < len(value) < old:
        return [value[i % len(value)] for _, i in selection]
    if isinstance(value, str) and len(value) == old and "pattern" in key:
        return "".join(_pick(_of(source, key), value, i) for source, i in selection)
    if isinstance(value, dict) and "layer" in key and all(str(k).isdigit() for k in value):
        width = len(str(new - 1)) if any(str(k).startswith("0") for k in value) else 0
        by_index = {int(k): v for k, v in value.items()}
        return {
            str(j).zfill(width): by_index[i] for j, (_, i) in enumerate(selection) if i in by_index
        }
    return None


def _is_index_list(key: str, value: list[Any], old: int) -> bool:
    """Whether a list holds layer numbers (llama4's moe_layers), not one flag for each layer."""
    if not value or not INDEX_LIST.search(key):
        return False
    numbers = [v for v in value if isinstance(v, int) and not isinstance(v, bool)]
    rising = all(a < b for a, b in itertools.pairwise(numbers))
    return len(numbers) == len(value) and rising and numbers[0] >= 0 and numbers[-1] < old


def _of(source: Scope, key: str) -> Any:
    """The source's own list, materialised if its class would derive one."""
    derive = _derived_lists(source).get(key)
    if derive is None or _is_written(source, key, derive):
        return source.get(key)
    length = next((source[k] for k in ("num_hidden_layers", "n_layer") if k in source), 0)
    return _written_out(derive, source, length)


def _pick(theirs: Any, fallback: Any, index: int) -> Any:
    """Entry ``index`` of the source's list, or of the donor's when the source has none."""
    return theirs[index] if theirs is not None and index < len(theirs) else fallback[index]


# --- patterns that a class derives from scalars when the list is not written -------------------

Derive = Callable[[Scope, int], Any]
"""(scope, layer) → its entry; true or false where the list holds the numbers of the true ones."""


def _written_out(derive: Derive, scope: Scope, length: int) -> list[Any]:
    """The list as config.json has it."""
    entries = [derive(scope, i) for i in range(length)]
    if all(isinstance(entry, bool) for entry in entries):
        return [i for i, entry in enumerate(entries) if entry]
    return entries


def _is_written(scope: Scope, key: str, derive: Derive) -> bool:
    """Whether a list is there; an empty one only says something if it holds layer numbers."""
    value = scope.get(key)
    return value is not None and (value != [] or isinstance(derive(scope, 0), bool))


def _every(period: Scope, key: str, default: int, index: int) -> bool:
    """Whether ``index`` is the last of its period."""
    value = period.get(key)
    return (index + 1) % (value if isinstance(value, int) and value > 0 else default) == 0


def _sliding_except_every(key: str, default: int) -> Derive:
    return lambda scope, i: FULL if _every(scope, key, default, i) else SLIDING


def _full_first_of(key: str, default: int) -> Derive:
    return lambda scope, i: FULL if _every(scope, key, default, i - 1) else SLIDING


def _window_after(scope: Scope, index: int) -> str:
    in_use = scope.get("use_sliding_window") and scope.get("sliding_window") is not None
    return SLIDING if in_use and index >= scope.get("max_window_layers", 28) else FULL


def _window_in_front(scope: Scope, index: int) -> str:
    in_front = index % 2 == 0 and index < scope.get("max_window_layers", 28)
    return SLIDING if in_front and scope.get("use_sliding_window") else FULL


def _linear_except_every(scope: Scope, index: int) -> str:
    return FULL if _every(scope, "full_attention_interval", 4, index) else LINEAR


def _rope_flag(scope: Scope, index: int) -> int:
    return 0 if _every(scope, "no_rope_layer_interval", 4, index) else 1


def _has_experts(scope: Scope, index: int) -> bool:
    return _every(scope, "interleave_moe_layer_step", 1, index)


_LAYER_TYPES: Mapping[str, Derive] = {
    "gemma2": _sliding_except_every("", 2),
    "gpt_oss": _sliding_except_every("", 2),
    "gemma3": _sliding_except_every("sliding_window_pattern", 6),
    "t5gemma2": _sliding_except_every("sliding_window_pattern", 6),
    "cohere2": _sliding_except_every("sliding_window_pattern", 4),
    "exaone4": _sliding_except_every("sliding_window_pattern", 4),
    "olmo3": _sliding_except_every("sliding_window_pattern", 4),
    "exaone_moe": _sliding_except_every("sliding_window_pattern", 4),
    "afmoe": _sliding_except_every("global_attn_every_n_layers", 4),
    "vaultgemma": _sliding_except_every("", 2),
    "modernbert": _full_first_of("global_attn_every_n_layers", 3),
    "modernbert-decoder": _full_first_of("global_attn_every_n_layers", 3),
    "cwm": _full_first_of("", 4),
    "qwen2": _window_after,
    "qwen2_moe": _window_in_front,
    "qwen3": _window_after,
    "qwen3_next": _linear_except_every,
    "qwen3_5": _linear_except_every,
}
_OTHER_LISTS: Mapping[str, Mapping[str, Derive]] = {
    "llama4": {"no_rope_layers": _rope_flag, "moe_layers": _has_experts},
    "smollm3": {"no_rope_layers": _rope_flag},
}


def _derived_lists(scope: Scope) -> Mapping[str, Derive]:
    """The per-layer lists that this scope's model type derives, longest type name first."""
    model_type = str(scope.get("model_type", ""))
    if "patch_size" in scope:  # the tower of a vision model of that name
        return {}
    for known, lists in _OTHER_LISTS.items():
        if model_type == known or model_type.startswith(f"{known}_"):
            return lists
    for known in sorted(_LAYER_TYPES, key=len, reverse=True):
        if model_type == known or model_type.startswith(f"{known}_"):
            return {"layer_types": _LAYER_TYPES[known]}
    return {}

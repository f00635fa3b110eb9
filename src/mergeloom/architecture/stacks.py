"""Layer stacks from tensor names and shapes: no list of known families.

A tensor name splits at its first all-digit segment into (prefix, index, suffix). A prefix whose
indices run 0…n−1 is a stack of n layers; config.json tells where n is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Path = tuple[str, ...]

COUNT_KEYS = frozenset(
    """num_hidden_layers n_layer n_layers num_layers depth layers encoder_layers decoder_layers
    num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers
    num_blocks num_block hidden_layers num_global_layers num_recurrent_layers num_layers_per_stack
    text_layers n_text_layer L_layers H_layers""".split()
)
LAYER_LIST_KEYS = ("layers_block_type", "layer_types", "block_types", "hybrid_override_pattern")
NEXT_TOKEN_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")

_LAYER = re.compile(r"(.*?)\.([0-9]+)\.(.*)", re.DOTALL)
VISION = re.compile(r"vision|visual|vit(?!e)|image|(^|\.)sam_", re.I)
AUDIO = re.compile(r"audio|speech|codec|acoustic", re.I)
TEXT_SCOPES = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class Stack:
    """Repeated layers ``{prefix}.{i}.{suffix}`` for i in 0…length−1.

    ``count_key`` is the path in config.json that holds the length, or None. ``extra`` counts the
    multi-token-prediction layers stored behind the regular ones; ``length`` leaves them out.
    """

    prefix: str
    length: int
    count_key: Path | None = None
    extra: int = 0

    def tensor(self, index: int, suffix: str) -> str:
        """The name of one tensor of layer ``index``."""
        return f"{self.prefix}.{index}.{suffix}"


def split(name: str) -> tuple[str, int, str] | None:
    """(prefix, index, suffix) at the first all-digit segment, or None if there is none."""
    found = _LAYER.match(name)
    return (found[1], int(found[2]), found[3]) if found else None


def family(text: str) -> str:
    """``vision``, ``audio`` or ``text``, by the words in a prefix or a config path."""
    if VISION.search(text):
        return "vision"
    return "audio" if AUDIO.search(text) else "text"


def leaves(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every (path, value) of nested mappings; lists count as values."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from leaves(value, (*path, str(key)))
    else:
        yield path, config


def lookup(config: Mapping[str, Any], path: Path) -> Any:
    """The value at a path of nested mappings, or None."""
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def find_stacks(
    shapes: Shapes, config: Mapping[str, Any], stated: Mapping[str, Path | None] | None = None
) -> tuple[Stack, ...]:
    """Every layer stack among the tensor names, in order of appearance.

    Args:
        shapes: tensor name → shape.
        config: config.json, possibly empty.
        stated: prefixes that are stacks whatever they look like, and their count keys.
    """
    stated = stated or {}
    groups: dict[str, dict[int, set[str]]] = {}
    for name in shapes:
        if parts := split(name):
            prefix, index, suffix = parts
            groups.setdefault(prefix, {}).setdefault(index, set()).add(suffix)
    stacks = []
    for prefix, layers in groups.items():
        count = len(layers)
        if prefix in stated and max(layers) == count - 1:
            stacks.append(_with_stated_key(prefix, count, stated[prefix], config))
            continue
        composite = any("." in suffix for suffixes in layers.values() for suffix in suffixes)
        if not composite or max(layers) != count - 1:
            continue
        stack = _with_count_key(prefix, count, config)
        if count >= 2 or stack.count_key:
            stacks.append(stack)
    return _with_implied_key(_with_own_keys(stacks, config), groups, config)


def _with_own_keys(stacks: list[Stack], config: Mapping[str, Any]) -> list[Stack]:
    """The stacks, each with a count key of its own where config.json has as many.

    Pix2Struct has 12 layers in its encoder and in its decoder, and a key for each.
    """
    result = list(stacks)
    for key in dict.fromkeys(s.count_key for s in stacks if s.count_key):
        same = [s for s in stacks if s.count_key == key]
        if key[-1] not in COUNT_KEYS or len(same) < 2:
            continue
        taken = {s.count_key for s in result}
        ranks = {s: (_score(key, s.prefix), "decoder" in s.prefix) for s in same}
        first, *others = sorted(same, key=lambda s: ranks[s], reverse=True)
        if any(ranks[s] == ranks[first] for s in others):
            continue  # nothing tells whose it is
        for stack in others:
            free = [
                path
                for path, value in leaves(config)
                if _is_count(path, value, stack.length) and path not in taken
            ]
            if free:
                best = max(free, key=lambda p: _score(p, stack.prefix))
                taken.add(best)
                result[result.index(stack)] = replace(stack, count_key=best)
    return result


def _with_implied_key(
    stacks: list[Stack], groups: Mapping[str, Mapping[int, set[str]]], config: Mapping[str, Any]
) -> tuple[Stack, ...]:
    """The stacks, with a count key for the text's when config.json leaves its class's default.

    LLaVA 1.5 says nothing in ``text_config`` of the 32 layers that Llama has by default.
    """
    scope: Path = next(((s,) for s in TEXT_SCOPES if isinstance(config.get(s), Mapping)), ())
    said = config if not scope else config[scope[0]]
    texts = [s for s in stacks if family(s.prefix) == "text"]
    if (
        "model_type" not in config
        or any(s.count_key for s in texts)
        or any(key in COUNT_KEYS or key in LAYER_LIST_KEYS for key in said)
        or not texts
    ):
        return tuple(stacks)
    largest = max(texts, key=lambda s: sum(map(len, groups[s.prefix].values())))
    implied = Stack(largest.prefix, largest.length, (*scope, "num_hidden_layers"))
    return tuple(implied if s is largest else s for s in stacks)


def _with_stated_key(prefix: str, count: int, key: Path | None, config: Mapping[str, Any]) -> Stack:
    """The stack with the key a row states; layers beyond the number there are extra ones."""
    value = lookup(config, key) if key else None
    length = len(value) if isinstance(value, (list, str)) else value
    if isinstance(length, int) and 0 < length < count:
        return Stack(prefix, length, key, count - length)
    return Stack(prefix, count, key)


def _with_count_key(prefix: str, count: int, config: Mapping[str, Any]) -> Stack:
    """The stack with the config path that best explains its length, if any does."""
    extra = max((int(v) for p, v in leaves(config) if p[-1:] and p[-1] in NEXT_TOKEN_KEYS
                 and isinstance(v, int)), default=0)  # fmt: skip
    for length, surplus in ((count, 0), (count - extra, extra)):
        if length < 1:
            continue
        found = [
            path
            for path, value in leaves(config)
            if _is_count(path, value, length) and not _is_of_another(path, prefix, config)
        ]
        if found:
            return Stack(prefix, length, max(found, key=lambda p: _score(p, prefix)), surplus)
    for path, value in leaves(config):
        is_list = path and path[-1] in LAYER_LIST_KEYS and isinstance(value, (list, str))
        if is_list and len(value) == count and family(".".join(path[:-1])) == family(prefix):
            return Stack(prefix, count, path)
    return Stack(prefix, count)


def _is_count(path: Path, value: Any, length: int) -> bool:
    return bool(path) and path[-1] in COUNT_KEYS and value == length and not isinstance(value, bool)


def _is_of_another(path: Path, prefix: str, config: Mapping[str, Any]) -> bool:
    """Whether layers of text meet a key of ``vision_config`` while ``text_config`` is silent."""
    scopes = [config[s] for s in TEXT_SCOPES if isinstance(config.get(s), Mapping)]
    silent = any(not COUNT_KEYS & set(s) and not set(LAYER_LIST_KEYS) & set(s) for s in scopes)
    return silent and family(prefix) == "text" and family(".".join(path[:-1])) != "text"


def _score(path: Path, prefix: str) -> float:
    """How well a count key fits a stack, by the words both use (higher is better)."""
    dotted = ".".join(path)
    score = 10.0 if family(dotted) == family(prefix) else 0.0
    words = [word for word in ("decoder", "encoder") if word in prefix]
    if words:
        wanted, other = ("decoder", "encoder") if "decoder" in words else ("encoder", "decoder")
        score += 5 if wanted in dotted else -5 if other in dotted else 0
    # qformer_config speaks of qformer.encoder.layer.
    owners = [scope.removesuffix("_config") for scope in path[:-1]]
    score += 3 if any(owner in prefix for owner in owners if owner != "text") else 0
    score += 2 if path[-1] == "num_hidden_layers" else 0
    score += 1 if any(scope in path for scope in TEXT_SCOPES) else 0
    return score - 0.1 * len(path)

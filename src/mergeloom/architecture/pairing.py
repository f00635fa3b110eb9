"""Which stack and which tensor around the stacks of two checkpoints are the same."""

from __future__ import annotations

from collections.abc import Mapping

from mergeloom.architecture.layout import Layout
from mergeloom.architecture.packing import normal
from mergeloom.architecture.stacks import Stack, family

ENOUGH = 0.6
"""The share of a layer's tensors that two stacks must have in common to be the same part."""

Signature = dict[str, tuple[int, ...]]
"""Name inside of the layer, however it is written → shape in the first layer that has it."""


def pair_stacks(donor: Layout, other: Layout) -> dict[str, str]:
    """The donor's stack prefix → the other's, for every stack that has one counterpart.

    Stacks of one prefix belong together. The rest is paired by the tensors of their layers, the
    most alike first: names, then shapes, then being the main stack, then the end of the prefix.
    Two candidates that are equally good are no match.
    """
    theirs = {stack.prefix for stack in other.stacks}
    found = {stack.prefix: stack.prefix for stack in donor.stacks if stack.prefix in theirs}
    ours = [stack for stack in donor.stacks if stack.prefix not in found]
    free = [stack for stack in other.stacks if stack.prefix not in found.values()]
    if not ours or not free:
        return found
    signatures = {(side, stack.prefix): _signature(layout, stack)
                  for side, layout, stacks in ((0, donor, ours), (1, other, free))
                  for stack in stacks}  # fmt: skip
    scored = []
    for one in ours:
        for two in free:
            a, b = signatures[0, one.prefix], signatures[1, two.prefix]
            likeness = len(a.keys() & b.keys()) / len(a.keys() | b.keys())
            is_same = likeness == 1 or family(one.prefix) == family(two.prefix)
            if likeness < ENOUGH or not is_same:
                continue
            both_main = (one == donor.main) == (two == other.main)
            shapes = sum(a[key] == b.get(key) for key in a) / len(a)
            score = (likeness, shapes, both_main, _tail(one.prefix, two.prefix))
            scored.append((score, one.prefix, two.prefix))
    scored.sort(key=lambda entry: entry[0], reverse=True)
    while scored:
        best, one_prefix, two_prefix = scored[0]
        rivals = [
            p for s, *p in scored[1:] if s == best and (p[0] == one_prefix) != (p[1] == two_prefix)
        ]
        if not rivals:
            found[one_prefix] = two_prefix
        gone = {one_prefix, *(p[0] for p in rivals)}, {two_prefix, *(p[1] for p in rivals)}
        scored = [e for e in scored if e[1] not in gone[0] and e[2] not in gone[1]]
    return found


def pair_loose(donor: Layout, other: Layout, stacks: Mapping[str, str]) -> dict[str, str]:
    """The donor's name → the other's, for tensors outside of stacks that are called differently.

    The prefixes that differ between two stacks are exchanged first. What is left is the same
    where one name is the end of the other (``lm_head.weight``, ``language_model.lm_head.weight``)
    and no second name fits.
    """
    ours = [n for n in donor.shapes if n not in other.shapes and not donor.place(n).stack]
    free = dict.fromkeys(
        n for n in other.shapes if n not in donor.shapes and not other.place(n).stack
    )
    pairs = {heads(one, two) for one, two in stacks.items() if one != two}
    found: dict[str, str] = {}
    for one, two in sorted(pairs, key=lambda pair: (-len(pair[0]) - len(pair[1]), pair)):
        for name in ours:
            if name not in found and (moved := move(name, one, two)) in free:
                found[name] = moved
                del free[moved]
    by_end: dict[str, list[str]] = {}
    for name in free:
        by_end.setdefault(_end(name), []).append(name)
    fits = {
        name: [f for f in by_end.get(_end(name), ()) if _is_end(name, f) or _is_end(f, name)]
        for name in ours
        if name not in found
    }
    claims = [f for candidates in fits.values() for f in candidates]
    for name, candidates in fits.items():
        if len(candidates) == 1 and claims.count(candidates[0]) == 1:
            found[name] = candidates[0]
    return found


def heads(one: str, other: str) -> tuple[str, str]:
    """Both names without their longest common tail of segments."""
    tail = _tail(one, other)
    a, b = one.split("."), other.split(".")
    return ".".join(a[: len(a) - tail]), ".".join(b[: len(b) - tail])


def move(name: str, ours: str, theirs: str) -> str:
    """``name`` with the leading segments ``ours`` replaced by ``theirs``; else an empty text."""
    if ours and not name.startswith(f"{ours}."):
        return ""
    rest = name[len(ours) + 1 :] if ours else name
    return f"{theirs}.{rest}" if theirs else rest


def _signature(layout: Layout, stack: Stack) -> Signature:
    found: Signature = {}
    for index in range(stack.length):
        for suffix in layout.suffixes.get((stack.prefix, index), ()):
            found.setdefault(normal(suffix), layout.shapes[stack.tensor(index, suffix)])
    return found


def _tail(one: str, other: str) -> int:
    """How many last segments two names have in common."""
    count = 0
    for a, b in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        count += 1
    return count


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _is_end(short: str, long: str) -> bool:
    return long.endswith(f".{short}")

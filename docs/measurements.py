"""What the benchmarks measured, in the words and tables of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergeloom.methods import Method

DOCS = Path(__file__).resolve().parent


def measured(name: str) -> dict[str, Any]:
    """What a benchmark wrote to measured/, empty when it was not run."""
    path = DOCS / "measured" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def times(count: int) -> str:
    """How often, in words."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def costs() -> Iterator[str]:
    """What merges cost: a section with what was measured."""
    yield from ("", "## Cost", "")
    yield (
        "Memory does not grow with the model: all methods work block by block under "
        "`--max-memory`. Time grows with the number of parameters times the number of models, and "
        "with how often the inputs are read and what is computed of them. "
        "`python benchmarks/methods.py` measures it on your machine, beside mergekit."
    )
    if found := measured("methods"):
        yield ""
        yield (
            f"{_where(found)} *engine* is the time from the first read to the last write, as a "
            "multiple of linear's and of what plain reads and writes of the same bytes take, in "
            "one loop and in one on each core; *mergekit* is how many times as long its whole "
            "process took as ours."
        )
        yield from ("", *_methods(found["measured"]))
    if grown := measured("sizes"):
        yield from ("", "### How it grows", "")
        yield (
            f"{_where(grown, 'models of up to')} Nanoseconds of the engine for each input "
            "element, that is for each parameter of each model, the base included: a row of equal "
            "numbers is a cost that grows as the parameters and as the models do."
        )
        yield from ("", *_growth(grown["measured"]))


def cost_of(method: Method, usual: int, least: int) -> Iterator[str]:
    """What one method costs.

    Args:
        method: the method.
        usual: how often it reads its inputs.
        least: how often with its defaults.
    """
    which = next((p for p in ("density", "select_topk") if method.parameter(p)), "")
    also = f" ({times(least)} with the default {which} of 1)" if usual != least else ""
    yield (
        f"It reads its inputs {times(usual)}{also}, in blocks: memory does not grow with the model."
    )
    found = measured("methods")
    results = found.get("measured", {})
    if method.name not in results:
        return
    ours, peer = results[method.name]["ours"], results[method.name].get("peer")
    words = [f"the process needed {ours['peak_rss'] / 1e6:.0f} MB"]
    if "linear" in results and method.name != "linear":
        share = ours["engine"] / results["linear"]["ours"]["engine"]
        words.insert(0, f"its engine took {share:.1f} times as long as linear's")
    if peer:
        words.append(f"mergekit's process took {peer['wall'] / ours['wall']:.1f} times as long")
    text = "; ".join(words)
    yield from ("", f"{_where(found)} {text[0].upper()}{text[1:]}.")


def _where(found: dict[str, Any], size: str = "models of") -> str:
    """On which models, when and with what."""
    settings, machine = found["settings"], found["machine"]
    peer = (machine["peer"] or {}).get("mergekit")
    beside = f" beside mergekit {peer}" if peer else ""
    return (
        f"Measured {machine['date'][:10]} with mergeloom {machine['ours']['mergeloom']}{beside} on "
        f"{machine['cores']} cores, bfloat16 {size} {settings['size']} parameters, "
        f"{settings['cache']} page cache."
    )


def _methods(results: dict[str, Any]) -> Iterator[str]:
    linear = results.get("linear", {}).get("ours", {}).get("engine")
    yield (
        "| method | engine / linear's | engine / plain I/O | on all cores | peak | mergekit "
        "| its peak |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, result in results.items():
        ours, peer = result["ours"], result.get("peer")
        cells = [
            f"[{name}](methods/{name}.md)",
            f"{ours['engine'] / linear:.1f}" if linear else "–",
            f"{ours['engine'] / result['floor']['engine']:.1f}",
            f"{ours['engine'] / result['threaded']['engine']:.1f}",
            f"{ours['peak_rss'] / 1e6:.0f} MB",
            f"{peer['wall'] / ours['wall']:.1f} ×" if peer else "–",
            f"{peer['peak_rss'] / 1e6:.0f} MB" if peer else "–",
        ]
        yield f"| {' | '.join(cells)} |"


def _growth(results: dict[str, Any]) -> Iterator[str]:
    cases = next(iter(results.values()))
    header = [f"{case['size']} × {case['tuned']}" for case in cases]
    yield f"| method | {' | '.join(header)} |"
    yield f"|---|{'---:|' * len(header)}"
    for name, found in results.items():
        spent = [f"{1e9 * case['ours']['engine'] / case['input_elements']:.2f}" for case in found]
        yield f"| [{name}](methods/{name}.md) | {' | '.join(spent)} |"

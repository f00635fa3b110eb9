"""The pages of the methods, from their declarations and from what the benchmarks measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from measurements import cost_of, costs, measured, times

from mergeloom.cli.explain import SYMBOLS
from mergeloom.methods import METHODS, Arguments, Method, Parameter, passes

NOTICE = "<!-- Written by docs/generate.py: make docs -->"
FAMILIES = {
    "sums": "Sums",
    "spherical": "Arcs between two models",
    "geometric": "Means and angles of several models",
    "sparse": "Task vectors, thinned out",
    "overlap": "Counting who changed an element",
    "selective": "Choosing elements",
}
"""The module of a method → the heading it is listed under."""
BASELINES = ("linear", "task_arithmetic")
UNCERTAIN = 0.02
"""How far two shares of solved problems may be apart by chance alone."""

PICTURES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("sums.svg", ("linear", "task_arithmetic"),
     "Each dot is a merge of models with two weights. linear moves on the line between the models; "
     "task_arithmetic leaves the base along the sum of the task vectors, and a negative weight "
     "moves away from a model."),
    ("arcs.svg", ("slerp", "nuslerp"),
     "slerp goes round the origin, nuslerp with a base round the base; linear would cut the "
     "corner and come out shorter."),
    ("means.svg", ("multislerp", "karcher"),
     "Means of three models. linear falls inside the circle; multislerp and karcher keep the "
     "length, and karcher finds the true middle."),
    ("stock.svg", ("model_stock",),
     "The wider the angle between the task vectors, the closer to the base: at 90° nothing is "
     "left, beyond it the result turns away from the models."),
    ("ties.svg", ("ties", "consensus_ties"),
     "Each dot is an element. density is the share of the changes, the largest first, that stays "
     "as it is; the others become zero."),
    ("breadcrumbs.svg", ("breadcrumbs", "breadcrumbs_ties"),
     "Each dot is an element. The share gamma of the largest changes is dropped, then density is "
     "kept, and the smallest are dropped."),
    ("dare.svg", ("dare_linear", "dare_ties"),
     "Each dot is an element. Chance alone decides what is dropped; rescale makes what is left "
     "larger, so that the sum of the sizes stays."),
    ("della.svg", ("della_linear", "della"),
     "How often a change is kept, by its rank in the row. density is the middle of the line, "
     "epsilon how far its ends are from it."),
    ("election.svg",
     ("ties", "dare_ties", "della", "breadcrumbs_ties", "consensus_ties"),
     "The result for every pair of changes of two models. Where they disagree in sign, election "
     "takes the larger change instead of letting the two cancel. density leaves the middle out."),
    ("consensus.svg", ("consensus_ta", "consensus_ties"),
     "The result for every pair of changes of two models, white where the base stays. With k = 2 "
     "both must agree with the sum, the more clearly the larger lambda is."),
    ("ram.svg", ("ram", "ramplus_tl"),
     "The result for every pair of changes of two models. Where only one is larger than epsilon "
     "it is taken whole (ramplus_tl makes it larger still); where both are, their mean."),
    ("sce.svg", ("sce",),
     "The result for every pair of changes of two models, white where the base stays. A small "
     "select_topk keeps only what the models disagree on most."),
    ("nearswap.svg", ("nearswap",),
     "Each dot is an element. Changes up to t are taken whole, larger ones are cut to t."),
    ("fusion.svg", ("arcee_fusion",),
     "A matrix whose lower rows were changed more. The score multiplies an element's change with "
     "how much its row changed, so the strong rows give most of what is taken."),
)  # fmt: skip
"""File in pictures/, the methods it is about, what it shows."""


# --- methods -------------------------------------------------------------------------------------


def methods_page() -> str:
    """docs/methods.md: an overview of all methods and what they cost."""
    return "\n".join([*_overview(), *costs()])


def _overview() -> Iterator[str]:
    yield from (NOTICE, "", "# Methods", "")
    yield (
        "Every method is a formula for one tensor at a time and has a page of its own, with the "
        "formula, a picture, a recipe, and what it gave on the demo's models. `mergeloom explain "
        "METHOD` prints the same in a terminal. How parameters are written, for all layers or only "
        "some, is described in [recipe.md](recipe.md#parameters)."
    )
    yield ""
    yield (
        "**Where to begin:** with [linear](methods/linear.md), and with "
        "[task_arithmetic](methods/task_arithmetic.md) when there is a common base. They have the "
        "fewest parameters and are hard to beat: [quality.md](quality.md) has every method on the "
        "same two models."
    )
    for module, heading in FAMILIES.items():
        yield from ("", f"## {heading}", "")
        yield from ("| method | what it does | base | models | reads |", "|---|---|---|---|---|")
        for method in METHODS.values():
            if method.formula.__module__.rpartition(".")[2] == module:
                first = method.summary.partition(". ")[0].rstrip(".")
                yield (
                    f"| [{method.name}](methods/{method.name}.md) | {first} | {method.base} | "
                    f"{_count(method)} | {times(passes(method.formula(_arguments(method))))} |"
                )
    yield ""
    yield (
        "*models* counts the inputs besides the base; *reads* is how often all inputs are read, "
        "where something is thinned out at density 0.5."
    )
    yield from ("", "## Common to all", "")
    yield (
        "All arithmetic is float32 (float64 for float64 models) with one rounding at the end; sums "
        "over a whole tensor are float64, for 16-bit results of float32 sums of 512 elements. "
        "mergekit 0.1.5 computes most methods in the models' own precision, so bfloat16 results "
        "differ in the last digits: [parity.md](parity.md) counts them. Integer tensors are "
        "copied, from the base if there is one. `int8_mask` is accepted and has no effect."
    )


def _arguments(method: Method, thinned: float | None = 0.5) -> Arguments:
    """Usual arguments for a method; ``thinned`` is the density, None for the default."""

    def value(p: Parameter) -> Any:
        if thinned is not None and p.name in ("density", "select_topk"):
            return thinned
        return 0.5 if p.default is None else p.default

    low, high = method.models
    return Arguments(
        {p.name: value(p) for p in method.parameters if not p.per_model},
        ({p.name: value(p) for p in method.parameters if p.per_model},)
        * max(low, 2 if high is None else 1),
        has_base=method.base != "unused",
    )


def _count(method: Method) -> str:
    low, high = method.models
    if high is None:
        return f"{low} or more"
    return f"{low}" if low == high else f"{low} to {high}"


def method_page(method: Method) -> str:
    """docs/methods/<name>.md."""
    return "\n".join(_method(method))


def _method(method: Method) -> Iterator[str]:
    yield from (NOTICE, "", f"# {method.name}", "")
    yield (
        f"{method.title} · base model: {method.base} · models besides it: {_count(method)} · "
        "[all methods](../methods.md)"
    )
    yield from ("", method.summary, "", f"**When:** {method.use}")
    for file, names, caption in PICTURES:
        if method.name in names:
            yield from ("", f"![what {method.name} does](../pictures/{file})", "", f"*{caption}*")
    yield from ("", "## Formula", "", method.formula_text.rstrip(), "", SYMBOLS)
    if method.parameters:
        yield from ("", "## Parameters", "")
        yield from ("| parameter | type | given | default | meaning |", "|---|---|---|---|---|")
        yield from (_parameter(p) for p in method.parameters)
    yield from ("", "## A recipe", "", "```yaml", method.example.rstrip(), "```")
    yield from _quality_of(method)
    usual = passes(method.formula(_arguments(method)))
    least = passes(method.formula(_arguments(method, None)))
    yield from ("", "## Cost", "", *cost_of(method, usual, least))
    if method.differs:
        yield from ("", "## Beside mergekit and the paper", "", method.differs)
    if method.reference:
        yield from ("", f"**Source:** {method.reference}")


def _quality_of(method: Method) -> Iterator[str]:
    """What this method and the two baselines gave on the demo's models."""
    found = measured("quality")
    own = [row for row in found.get("merges", []) if row["method"] == method.name]
    if not own:
        return
    yield from ("", "## On the demo's models", "")
    yield (
        "Two tiny specialists, one that adds and one that sorts, merged: the share of held-out "
        f"problems solved ({_measured_with(found)}; [all methods](../quality.md))."
    )
    first = [_first(found, name) for name in BASELINES if name != method.name]
    yield from ("", *_scores([*first, *own], "", here=method.name))


# --- quality -------------------------------------------------------------------------------------


def quality_page() -> str:
    """docs/quality.md: every method on the demo's two specialists."""
    return "\n".join(_quality())


def _quality() -> Iterator[str]:
    found = measured("quality")
    yield from (NOTICE, "", "# What the methods give on two small models", "")
    yield (
        "The demo's two specialists, fine-tuned from one base of 0.6 million parameters, merged by "
        f"every method: the share of {found['problems']} held-out problems of each skill that the "
        "result answers exactly, to the last character. `make bench-quality` writes this page "
        f"again; {_measured_with(found)}."
    )
    merges = found["merges"]
    baselines = [_first(found, name) for name in BASELINES]
    others = [row for row in merges if row not in baselines]
    yield from ("", *_scores([*found["models"], *baselines], "methods/"), "")
    yield from ("## What it says", "")
    yield _verdict(baselines, others)
    yield ""
    yield (
        "Settings are usual ones, not the best ones of each method for these models, and a method "
        "can do better with others. The weight 0.6 is the demo's, which was chosen with task "
        "arithmetic. With this many problems a share is uncertain by about 2 points, and these are "
        "two models of one kind: what holds on yours, only a test on your own tasks can say."
    )
    yield from ("", "## Every method", "", *_scores(merges, "methods/"), "")
    seeds = max(row["seeds"] for row in merges)
    yield f"Methods with chance are means over {seeds} seeds. Weights are those of each model."


def _verdict(baselines: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """In words, how often another setting beats the baselines, counted from the table."""

    def worse(row: dict[str, Any]) -> float:
        return min(float(row["add"]), float(row["sort"]))

    best = max(map(worse, baselines))
    better = [row for row in others if worse(row) > best + UNCERTAIN]
    near = [row for row in others if abs(worse(row) - best) <= UNCERTAIN]
    return (
        "**The plain mean and task arithmetic are hard to beat.** Judged by the weaker of the two "
        f"skills, of the {len(others)} other settings {len(better) or 'none'} "
        f"{'is' if len(better) == 1 else 'are'} better than the better of these two by more than "
        f"chance, {len(near)} are as good, and {len(others) - len(better) - len(near)} are worse. "
        "So try these two first, and the scale of the task vectors (weight, lambda) before another "
        "method: it matters more."
    )


def _first(found: dict[str, Any], method: str) -> dict[str, Any]:
    """The first row of a method: its usual setting."""
    return next(row for row in found["merges"] if row["method"] == method)


def _measured_with(found: dict[str, Any]) -> str:
    words = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"measured {found['date']}, {words}"


def _scores(rows: list[dict[str, Any]], folder: str, here: str = "") -> Iterator[str]:
    """A table of scores; ``folder`` is where the methods' pages are, ``here`` the page it is on."""
    yield from ("| model or method | setting | add | sort |", "|---|---|---:|---:|")
    for row in rows:
        name = row.get("model") or row["method"]
        if "method" in row and name != here:
            name = f"[{name}]({folder}{name}.md)"
        yield f"| {name} | {row.get('setting', '')} | {row['add']:.1%} | {row['sort']:.1%} |"


def _parameter(parameter: Parameter) -> str:
    kind = f"{' / '.join(parameter.choices) or parameter.kind}{_range(parameter)}"
    given = "for each model" if parameter.per_model else "once"
    default = "required" if parameter.required else _default(parameter.default)
    meaning = parameter.help.replace("|", "\\|")
    return f"| `{parameter.name}` | {kind} | {given} | {default} | {meaning} |"


def _range(parameter: Parameter) -> str:
    low, high = parameter.low, parameter.high
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    if low is not None:
        return f", ≥ {low:g}"
    return "" if high is None else f", ≤ {high:g}"


def _default(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else f"{value}"

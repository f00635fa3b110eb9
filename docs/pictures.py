"""Draw what the parameters of the methods do, with mergeloom itself on tensors of a few numbers.

python docs/pictures.py            writes docs/pictures/*.svg (make pictures)
python docs/pictures.py ties sce   only these

Nothing is computed here but the inputs: every result is what merge_state_dicts gave. The files are
the same bytes for the same versions of matplotlib and numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from drawing import BLUE, COLOURS, FAINT, GREEN, INK, ORANGE, SETTINGS, Array, merge, panels
from matplotlib import pyplot as plt

OUT = Path(__file__).resolve().parent / "pictures"


# --- points in the plane: the tensor has two elements --------------------------------------------


def plane(axis: Any, title: str, limits: tuple[float, float, float, float]) -> None:
    """A panel in which distances are the same both ways."""
    axis.set_title(title)
    axis.set_xlim(limits[:2])
    axis.set_ylim(limits[2:])
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])


def inputs(axis: Any, points: Mapping[str, Sequence[float]], origin: bool = False) -> None:
    """The models as named dots."""
    if origin:
        axis.plot(0, 0, "+", color=INK)
        axis.annotate("0", (0, 0), (-7, -8), textcoords="offset points", color=INK)
    for name, (x, y) in points.items():
        axis.plot(x, y, "o", color=INK, ms=5)
        axis.annotate(name, (x, y), (5, 4), textcoords="offset points", color=INK)


def trail(axis: Any, points: Sequence[Array], colour: str, label: str = "") -> None:
    """The results for a row of values of a parameter."""
    line = np.stack(points)
    axis.plot(line[:, 0], line[:, 1], ".-", color=colour, lw=0.8, ms=5, label=label)


def label(axis: Any, point: Array, text: str, offset: tuple[int, int] = (5, -9)) -> None:
    """A result with its parameter."""
    axis.annotate(text, tuple(point), offset, textcoords="offset points", color=BLUE, fontsize=7)


def sums() -> Any:
    """linear and task_arithmetic: what weights do."""
    figure, (left, middle, right) = panels(3)
    base, a, b = [0.2, 0.2], [1.0, 0.4], [0.5, 1.1]
    limits = (0.0, 1.7, 0.0, 1.7)
    plane(left, "linear: weight of B", limits)
    steps = [merge("linear", {"A": a, "B": b}, own={"A": {"weight": 1 - w}, "B": {"weight": w}})
             for w in np.linspace(0, 1, 11)]  # fmt: skip
    trail(left, steps, BLUE)
    label(left, steps[5], "0.5", (-20, -8))
    inputs(left, {"A": a, "B": b})
    plane(middle, "task_arithmetic: weight", limits)
    weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    steps = [merge("task_arithmetic", {"A": a, "B": b}, base=base, each={"weight": w})
             for w in weights]  # fmt: skip
    trail(middle, steps, BLUE)
    for step, weight in zip(steps[1:], weights[1:], strict=True):
        label(middle, step, f"{weight:g}")
    inputs(middle, {"base": base, "A": a, "B": b})
    plane(right, "weight of B, that of A is 1", limits)
    weights = (-0.4, -0.2, 0.0, 0.25, 0.5)
    steps = [merge("task_arithmetic", {"A": a, "B": b}, base=base,
                   own={"A": {"weight": 1.0}, "B": {"weight": w}}) for w in weights]  # fmt: skip
    trail(right, steps, BLUE)
    for step, weight in zip(steps, weights, strict=True):
        label(right, step, f"{weight:g}", (5, -3))
    inputs(right, {"base": base, "A": a, "B": b})
    return figure


def arcs() -> Any:
    """slerp and nuslerp: what t and the weights do."""
    figure, (left, right) = panels(2, 2.9)
    a, b = [1.0, 0.1], [0.1, 0.8]
    plane(left, "slerp: t between two models", (-0.25, 1.2, -0.15, 1.1))
    ts = np.linspace(0, 1, 11)
    trail(left, [merge("slerp", {"B": b}, base=a, t=float(t)) for t in ts], BLUE, "slerp")
    straight = [merge("linear", {"A": a, "B": b},
                      own={"A": {"weight": 1 - t}, "B": {"weight": t}}) for t in ts]  # fmt: skip
    trail(left, straight, FAINT, "linear")
    for t in (0.2, 0.5, 0.8):
        label(left, merge("slerp", {"B": b}, base=a, t=t), f"{t:g}", (5, 2))
    inputs(left, {"base (t 0)": a, "other (t 1)": b}, origin=True)
    left.legend(loc="upper right")
    plane(right, "nuslerp with a base: the arc of the task vectors", (0.0, 1.8, 0.0, 1.3))
    base, a, b = [0.4, 0.3], [1.2, 0.45], [0.5, 1.0]
    steps = [merge("nuslerp", {"A": a, "B": b}, base=base,
                   own={"A": {"weight": 1 - t}, "B": {"weight": t}}) for t in ts]  # fmt: skip
    trail(right, steps, BLUE)
    for place in (2, 5, 8):
        label(right, steps[place], f"weight of B {ts[place]:g}", (5, 0))
    inputs(right, {"base": base, "A": a, "B": b})
    return figure


def means() -> Any:
    """multislerp and karcher: means that keep the length."""
    figure, (left, right) = panels(2, 2.9)
    angles = np.radians([5, 25, 125])
    models = {name: [float(np.cos(x)), float(np.sin(x))]
              for name, x in zip("ABC", angles, strict=True)}  # fmt: skip
    limits = (-0.9, 1.35, -0.15, 1.2)
    plane(left, "three models of the same length, same weights", limits)
    circle = np.linspace(-0.1, np.pi * 0.85, 60)
    for axis in (left, right):
        axis.plot(np.cos(circle), np.sin(circle), color=FAINT, lw=0.6)
    rows = (
        ("linear", merge("linear", models, each={"weight": 1.0}), ORANGE, "s"),
        ("multislerp", merge("multislerp", models, each={"weight": 1.0}), GREEN, "D"),
        ("karcher", merge("karcher", models), BLUE, "o"),
    )
    for name, point, colour, sign in rows:
        left.plot(*point, sign, color=colour, ms=6, label=name)
    inputs(left, models, origin=True)
    left.legend(loc="lower left")
    plane(right, "multislerp: weight of C, the others have 1", limits)
    weights = (0.0, 1.0, 2.0, 4.0, 16.0)
    steps = [merge("multislerp", models, each={"weight": 1.0}, own={"C": {"weight": w}})
             for w in weights]  # fmt: skip
    trail(right, steps, GREEN)
    for step, weight in zip(steps, weights, strict=True):
        label(right, step, f"{weight:g}", (2, -10))
    inputs(right, models, origin=True)
    return figure


def stock() -> Any:
    """model_stock: how the angle between task vectors decides."""
    figure, (left, right) = panels(2, 2.7)
    plane(left, "two task vectors and the result", (-1.1, 1.1, -0.1, 1.1))
    for degrees, colour in zip((20, 60, 90), COLOURS, strict=True):
        a, b = stars(degrees)
        for x, y in (a, b):
            left.plot([0, x], [0, y], color=colour, lw=0.8)
        left.plot(*merge("model_stock", {"A": a, "B": b}, base=[0.0, 0.0]), "o", color=colour,
                  label=f"{degrees}°")  # fmt: skip
    inputs(left, {"base": [0.0, 0.0]})
    left.legend(loc="lower left")
    right.set_title("share of the average that is kept")
    every = np.arange(0, 100, 5)
    for count, colour in ((2, BLUE), (3, ORANGE), (5, GREEN)):
        right.plot(every, [kept(count, int(x)) for x in every], color=colour,
                   label=f"{count} models")  # fmt: skip
    right.set_xlabel("angle between any two task vectors (degrees)")
    right.legend()
    return figure


def stars(degrees: float) -> list[list[float]]:
    """Two vectors of length 1 with this angle between them, either side of straight up."""
    half = np.radians(degrees / 2)
    return [[float(sign * np.sin(half)), float(np.cos(half))] for sign in (-1, 1)]


def kept(count: int, degrees: int) -> float:
    """How far along from the base to the average model_stock goes, for equal angles."""
    cosine = np.cos(np.radians(degrees))
    matrix = np.full((count, count), cosine) + np.eye(count) * (1 - cosine)
    values, vectors = np.linalg.eigh(matrix)
    rows = vectors * np.sqrt(np.clip(values, 0, None))  # unit vectors with these inner products
    models = {f"m{i}": row for i, row in enumerate(rows)}
    average = rows.mean(axis=0)
    result = merge("model_stock", models, base=np.zeros(count))
    return float(result @ average / (average @ average))


# --- changes of many elements --------------------------------------------------------------------


def changes(size: int = 600, seed: int = 0) -> Array:
    """Normal changes, from the smallest to the largest."""
    return np.sort(np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def through(axis: Any, title: str, reach: float = 2.6) -> None:
    """A panel of a change of the model against the change of the result."""
    axis.set_title(title)
    axis.set_xlim(-2.6, 2.6)
    axis.set_ylim(-reach, reach)
    axis.axline((0, 0), slope=1, color=FAINT, lw=0.6)
    axis.set_xlabel("change of the model")
    axis.set_ylabel("change of the result")


def ties() -> Any:
    """ties: density."""
    figure, axes = panels(3, 2.4)
    x = changes(110)
    for axis, density in zip(axes, (0.2, 0.5, 0.8), strict=True):
        through(axis, f"density {density:g}")
        y = merge("ties", {"A": x}, base=0 * x, each={"weight": 1.0, "density": density})
        axis.plot(x, y, ".", color=BLUE, ms=2.5)
    return figure


def breadcrumbs() -> Any:
    """breadcrumbs: density and gamma."""
    figure, axes = panels(3, 2.4)
    x = changes(110)
    for axis, (density, gamma) in zip(axes, ((0.9, 0.01), (0.8, 0.1), (0.5, 0.1)), strict=True):
        through(axis, f"density {density:g}, gamma {gamma:g}")
        y = merge("breadcrumbs", {"A": x}, base=0 * x,
                  each={"weight": 1.0, "density": density, "gamma": gamma})  # fmt: skip
        axis.plot(x, y, ".", color=BLUE, ms=2.5)
    return figure


def dare() -> Any:
    """dare: density and rescale."""
    figure, axes = panels(3, 2.4)
    x = changes(110)
    for axis, (density, rescale) in zip(
        axes, ((0.8, True), (0.3, True), (0.3, False)), strict=True
    ):
        through(axis, f"density {density:g}, rescale {str(rescale).lower()}", 5.4)
        y = merge("dare_linear", {"A": x}, base=0 * x, each={"weight": 1.0, "density": density},
                  rescale=rescale)  # fmt: skip
        axis.plot(x, y, ".", color=BLUE, ms=2.5)
    return figure


def della() -> Any:
    """della: what epsilon does to the share that is kept."""
    figure, (left, right) = panels(2, 2.5)
    rows, width, bins = 400, 200, 20
    x = np.random.default_rng(1).standard_normal((rows, width)).astype(np.float32)
    order = np.argsort(np.abs(x), axis=1)
    for axis, density in ((left, 0.5), (right, 0.8)):
        for epsilon, colour in zip((0.01, 0.1, 0.19), COLOURS, strict=True):
            each = {"weight": 1.0, "density": density, "epsilon": epsilon}
            y = merge("della_linear", {"A": x}, base=0 * x, each=each, rescale=False)
            share = np.take_along_axis(y != 0, order, 1).reshape(rows, bins, -1).mean((0, 2))
            axis.plot((np.arange(bins) + 0.5) / bins, share, ".-", color=colour, lw=0.8, ms=3,
                      label=f"epsilon {epsilon:g}")  # fmt: skip
        axis.set_title(f"density {density:g}")
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("rank of a change in its row, smallest to largest")
        axis.set_ylabel("share that is kept")
        axis.legend(loc="lower right")
    return figure


def nearswap() -> Any:
    """nearswap: t."""
    figure, axes = panels(3, 2.4)
    x = changes(110)
    for axis, t in zip(axes, (0.2, 0.7, 1.5), strict=True):
        through(axis, f"t {t:g}")
        axis.plot(x, merge("nearswap", {"A": x}, base=0 * x, t=t), ".", color=BLUE, ms=2.5)
    return figure


def fusion() -> Any:
    """arcee_fusion: which elements are taken."""
    figure, (left, right) = panels(2, 2.7)
    generator = np.random.default_rng(2)
    base = generator.standard_normal((24, 48)).astype(np.float32)
    strength = np.linspace(0.02, 0.3, 24, dtype=np.float32)[:, None]
    other = base + generator.standard_normal((24, 48)).astype(np.float32) * strength
    taken = merge("arcee_fusion", {"A": other}, base=base) != base
    for axis, values, title in (
        (left, np.abs(other - base), "size of the changes"),
        (right, np.where(taken, np.abs(other - base), np.nan), "those that are taken"),
    ):
        axis.imshow(values, cmap="Blues", vmin=0, vmax=0.7, aspect="auto")
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel("rows, the more changed below")
    return figure


# --- maps: the change of one element against those of two models ---------------------------------

REACH = 1.0
GRID = np.linspace(-REACH, REACH, 81, dtype=np.float32)


def maps(*drawn: tuple[str, str, dict[str, Any], dict[str, Any]]) -> Any:
    """A panel for each (title, method, parameters of each model, parameters of the merge)."""
    figure, axes = panels(len(drawn), 2.4)
    b, a = (np.ascontiguousarray(g) for g in np.meshgrid(GRID, GRID, indexing="ij"))
    for axis, (title, method, each, shared) in zip(axes, drawn, strict=True):
        found = merge(method, {"A": a, "B": b}, base=0 * a, each=each, **shared)
        image = axis.imshow(found, origin="lower", extent=(-REACH, REACH) * 2, cmap="RdBu_r",
                            vmin=-REACH, vmax=REACH, interpolation="nearest")  # fmt: skip
        axis.set_title(title)
        axis.set_xlabel("change of A")
        axis.set_xticks([-1, 0, 1])
        axis.set_yticks([-1, 0, 1])
    axes[0].set_ylabel("change of B")
    figure.colorbar(image, ax=axes, label="change of the result", shrink=0.9)
    return figure


def election() -> Any:
    """Signs: with and without election."""
    half = {"weight": 0.5}
    return maps(
        ("task_arithmetic, weight 0.5", "task_arithmetic", half, {}),
        ("ties, density 1", "ties", half, {}),
        ("ties, density 0.5", "ties", {**half, "density": 0.5}, {}),
    )


def consensus() -> Any:
    """Votes: lambda and k."""
    return maps(
        *(
            (f"k {k}, lambda {limit:g}", "consensus_ta",
             {"weight": 0.5, "k": k, "lambda": limit}, {})
            for k, limit in ((1, 1.0), (2, 0.4), (2, 1.0))
        )
    )  # fmt: skip


def ram() -> Any:
    """ram: epsilon, and the gain of ramplus_tl."""
    return maps(
        ("ram, epsilon 0.1", "ram", {}, {"epsilon": 0.1}),
        ("ram, epsilon 0.5", "ram", {}, {"epsilon": 0.5}),
        ("ramplus_tl, the same, r 1", "ramplus_tl", {},
         {"epsilon": 0.5, "r": 1.0, "alpha": 1.0}),
    )  # fmt: skip


def sce() -> Any:
    """sce: the selection."""
    return maps(*((f"select_topk {k:g}", "sce", {}, {"select_topk": k}) for k in (1.0, 0.5, 0.1)))


DRAWINGS: tuple[Callable[[], Any], ...] = (
    sums, arcs, means, stock, ties, breadcrumbs, dare, della, nearswap, fusion, election,
    consensus, ram, sce,
)  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Write the files, all of them or those that are named."""
    mpl.use("svg")
    OUT.mkdir(exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for draw in DRAWINGS:
            name = draw.__name__
            if not names or name in names:
                figure = draw()
                figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
                plt.close(figure)
                print(f"{name}.svg, {(OUT / f'{name}.svg').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

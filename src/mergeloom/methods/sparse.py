"""Task vectors made sparse, elected by sign and added: ties, dare, della, breadcrumbs.

A method is a row of the table: how changes are thinned out, whether signs are elected, defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mergeloom.methods.declaration import (
    BASE_ALONE,
    Arguments,
    Elementwise,
    Method,
    Parameter,
    WeightedSum,
)
from mergeloom.methods.pipeline import ELECTION, pipeline, rescale
from mergeloom.methods.registry import method
from mergeloom.methods.sparsify import (
    DENSITY,
    EPSILON,
    GAMMA,
    Sparsifier,
    keep_by_chance,
    keep_by_rank,
    keep_largest,
    keep_middle,
)
from mergeloom.methods.sums import INT8_MASK, LAMBDA, NORMALIZE, WEIGHT


@dataclass(frozen=True)
class Row:
    """One method of the family."""

    name: str
    title: str
    sparsify: Callable[[Arguments], Sparsifier]
    elect: bool
    normalize: bool
    rescale: str
    extra: tuple[Parameter, ...]
    summary: str
    use: str
    reference: str


TIES_PAPER = "TIES-Merging, https://arxiv.org/abs/2306.01708"
DARE_PAPER = "DARE, https://arxiv.org/abs/2311.03099"
DELLA_PAPER = "DELLA-Merging, https://arxiv.org/abs/2406.11617"
CRUMBS_PAPER = "Model Breadcrumbs, https://arxiv.org/abs/2312.06795"
VOTED = "Where the models disagree on a sign, the larger side wins and the other is left out."

TABLE = (
    Row("ties", "TIES", keep_largest, True, True, "false", (),
        f"Keeps the largest changes of each model and adds up those that agree in sign. {VOTED}",
        "Several fine-tunes of one base whose changes get in each other's way.", TIES_PAPER),
    Row("dare_linear", "Linear DARE", keep_by_chance, False, False, "true", (),
        "Drops a random share of each model's changes, scales up the rest and adds them to the "
        "base. What is dropped depends only on the seed, the tensor and the model.",
        "Fine-tunes with many small changes, of which most are not needed.", DARE_PAPER),
    Row("dare_ties", "DARE TIES", keep_by_chance, True, False, "true", (),
        f"Drops a random share of each model's changes, scales up the rest and adds up those that "
        f"agree in sign. {VOTED}",
        "Like dare_linear when models disagree.", DARE_PAPER),
    Row("della_linear", "Linear DELLA", keep_by_rank, False, False, "true", (EPSILON,),
        "Drops changes at random, small ones of a row more often than large ones, scales up the "
        "rest and adds them to the base. epsilon says how much rank matters.",
        "Like dare_linear, keeping large changes more often.", DELLA_PAPER),
    Row("della", "DELLA", keep_by_rank, True, True, "true", (EPSILON,),
        f"Drops changes at random, small ones of a row more often than large ones, and adds up "
        f"those that agree in sign. {VOTED}",
        "Like dare_ties, keeping large changes more often.", DELLA_PAPER),
    Row("breadcrumbs", "Model Breadcrumbs", keep_middle, False, False, "false", (GAMMA,),
        "Drops the largest and the smallest changes of each model and adds the middle ones to the "
        "base. gamma is the share of the largest, density the share that is kept.",
        "Many fine-tunes, some with outliers.", CRUMBS_PAPER),
    Row("breadcrumbs_ties", "Model Breadcrumbs with TIES", keep_middle, True, False, "false",
        (GAMMA,),
        f"Drops the largest and the smallest changes of each model and adds up those that agree "
        f"in sign. {VOTED}",
        "Like breadcrumbs when models disagree.", CRUMBS_PAPER),
)  # fmt: skip


def _register(row: Row) -> Method:
    normalize = Parameter("normalize", NORMALIZE, kind="bool", default=row.normalize)
    election = (ELECTION,) if row.elect else ()

    def formula(arguments: Arguments) -> Elementwise | WeightedSum:
        if not arguments.per_model:
            return BASE_ALONE
        steps = pipeline(arguments, row.sparsify, elect=row.elect)
        return Elementwise(
            steps.apply, steps.measures(), bool(steps.sparsifier and steps.sparsifier.whole_rows)
        )

    formula.__doc__ = row.summary
    return method(
        name=row.name,
        title=row.title,
        summary=row.summary,
        use=row.use,
        base="required",
        models=(0, None),
        parameters=(WEIGHT, DENSITY, *row.extra, normalize, rescale(row.rescale), LAMBDA,
                    *election, INT8_MASK),
        reference=row.reference,
        example=f"""\
merge_method: {row.name}
base_model: org/base
models:
  - {{model: org/A, parameters: {{weight: 0.5, density: 0.5}}}}
  - {{model: org/B, parameters: {{weight: 0.5, density: 0.5}}}}
dtype: bfloat16
""",
    )(formula)  # fmt: skip


METHODS_OF_TABLE = tuple(_register(row) for row in TABLE)

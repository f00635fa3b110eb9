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
    differs: str


TIES_PAPER = "TIES-Merging, https://arxiv.org/abs/2306.01708"
DARE_PAPER = "DARE, https://arxiv.org/abs/2311.03099"
DELLA_PAPER = "DELLA-Merging, https://arxiv.org/abs/2406.11617"
CRUMBS_PAPER = "Model Breadcrumbs, https://arxiv.org/abs/2312.06795"
VOTED = "Where the models disagree on a sign, the larger side wins and the other is left out."
TIES_DIFFERS = (
    "The same elements as mergekit 0.1.5 keeps, but of equal magnitudes always the earlier; "
    "consensus_method: count elects by the number of models. As in mergekit, each tensor is "
    "trimmed for itself and the average is weighted; the authors trim the model as a whole, give "
    "ties of signs to the sign that is more frequent, and do not weigh."
)
CHANCE_DIFFERS = (
    "rescale: true keeps each tensor's sum of magnitudes, as mergekit has done since 0.1.0; "
    "rescale: density divides by the keep probability, as the paper, older mergekit and mergekitty "
    "do. What is dropped depends on the seed (0 unless given), the tensor and the model alone, so "
    "results repeat but are not those of mergekit with the same seed."
)
DELLA_DIFFERS = (
    f"{CHANCE_DIFFERS} epsilon is half the width of the window, as in mergekit; the paper's is all "
    "of it. Rows of one element are kept with probability density; mergekit stops at them."
)
CRUMBS_DIFFERS = (
    "As in mergekit 0.1.5; before it, tensors with gamma·n below 1 were left to the base. The "
    "authors' code ranks the elements of each row, mergekit and we those of the whole tensor."
)

TABLE = (
    Row("ties", "TIES", keep_largest, True, True, "false", (),
        f"Keeps the largest changes of each model and adds up those that agree in sign. {VOTED}",
        "Several fine-tunes of one base whose changes get in each other's way.", TIES_PAPER,
        TIES_DIFFERS),
    Row("dare_linear", "Linear DARE", keep_by_chance, False, False, "true", (),
        "Drops a random share of each model's changes, scales up the rest and adds them to the "
        "base. What is dropped depends only on the seed, the tensor and the model.",
        "Fine-tunes with many small changes, of which most are not needed.", DARE_PAPER,
        CHANCE_DIFFERS),
    Row("dare_ties", "DARE TIES", keep_by_chance, True, False, "true", (),
        f"Drops a random share of each model's changes, scales up the rest and adds up those that "
        f"agree in sign. {VOTED}",
        "Like dare_linear when models disagree.", DARE_PAPER,
        CHANCE_DIFFERS),
    Row("della_linear", "Linear DELLA", keep_by_rank, False, False, "true", (EPSILON,),
        "Drops changes at random, small ones of a row more often than large ones, scales up the "
        "rest and adds them to the base. epsilon says how much rank matters.",
        "Like dare_linear, keeping large changes more often.", DELLA_PAPER,
        DELLA_DIFFERS),
    Row("della", "DELLA", keep_by_rank, True, True, "true", (EPSILON,),
        f"Drops changes at random, small ones of a row more often than large ones, and adds up "
        f"those that agree in sign. {VOTED}",
        "Like dare_ties, keeping large changes more often.", DELLA_PAPER,
        DELLA_DIFFERS),
    Row("breadcrumbs", "Model Breadcrumbs", keep_middle, False, False, "false", (GAMMA,),
        "Drops the largest and the smallest changes of each model and adds the middle ones to the "
        "base. gamma is the share of the largest, density the share that is kept.",
        "Many fine-tunes, some with outliers.", CRUMBS_PAPER,
        CRUMBS_DIFFERS),
    Row("breadcrumbs_ties", "Model Breadcrumbs with TIES", keep_middle, True, False, "false",
        (GAMMA,),
        f"Drops the largest and the smallest changes of each model and adds up those that agree "
        f"in sign. {VOTED}",
        "Like breadcrumbs when models disagree.", CRUMBS_PAPER,
        CRUMBS_DIFFERS),
)  # fmt: skip


THINNED: dict[Callable[[Arguments], Sparsifier], str] = {
    keep_largest: "Dᵢ = Δᵢ for the ⌊density·n⌋ largest |Δᵢ| of the tensor (at least one), else 0",
    keep_middle: "Dᵢ = Δᵢ for the ⌊density·n⌋ largest |Δᵢ| below the ⌊gamma·n⌋ largest, else 0",
    keep_by_chance: "Dᵢ = Δᵢ with probability density, else 0",
    keep_by_rank: "Dᵢ = Δᵢ with probability p, else 0; p rises with the rank of |Δᵢ| in its row,\n"
    "         from density − epsilon for the smallest to density + epsilon for the largest",
}
ADDED = """\
    M  = Σ Eᵢ, divided by Σ wᵢ with normalize"""
ELECTED = """\
    s  = sign of Σ Eᵢ, + for 0
    M  = Σ Eᵢ over the models with sign Eᵢ = s, divided by Σ wᵢ over them with normalize"""


def _formula_text(row: Row) -> str:
    """The docstring of a method of the table: its steps in their order."""
    return f"""Task vectors are thinned out, weighted, and added to the base.

    {THINNED[row.sparsify]}
    Eᵢ = wᵢ · aᵢ · Dᵢ
{ELECTED if row.elect else ADDED}
    result = B + λ · M

A density of 1 keeps everything. aᵢ is chosen by rescale: ``Σ |Δᵢ| / Σ |Dᵢ|`` over the tensor with
true, one divided by the keep probability with density, 1 with false.
"""


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

    formula.__doc__ = _formula_text(row)
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
        differs=row.differs,
    )(formula)  # fmt: skip


for _row in TABLE:
    _register(_row)

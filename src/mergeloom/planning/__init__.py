"""Recipe and headers → a flat, printable list of jobs and everything else decided beforehand."""

from mergeloom.planning.build import (
    default_intermediates,
    make_plan,
    merging_into,
    plan_opened,
)
from mergeloom.planning.plan import (
    Job,
    JobInput,
    ModelVocabulary,
    Options,
    Plan,
    Shard,
    SideFile,
    VocabularySummary,
)
from mergeloom.planning.provenance import metadata, public_name, public_recipe, shard_header
from mergeloom.planning.shards import index, weights_stem

__all__ = [
    "Job",
    "JobInput",
    "ModelVocabulary",
    "Options",
    "Plan",
    "Shard",
    "SideFile",
    "VocabularySummary",
    "default_intermediates",
    "index",
    "make_plan",
    "merging_into",
    "metadata",
    "plan_opened",
    "public_name",
    "public_recipe",
    "shard_header",
    "weights_stem",
]

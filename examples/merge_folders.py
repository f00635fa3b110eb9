"""The command line's steps as Python calls: load a recipe, look at the plan, merge.

Run it in a folder that holds the models, or name models of the hub.
"""

from __future__ import annotations

import sys

import mergeloom

RECIPE = """
merge_method: linear
models:
  - {model: org/A, parameters: {weight: 0.6}}
  - {model: org/B, parameters: {weight: 0.4}}
dtype: bfloat16
"""


def main() -> int:
    """Merge two models and say what was done."""
    try:
        plan = mergeloom.plan(RECIPE)  # reads headers only
        print(f"{len(plan.jobs)} tensors, {plan.bytes_in:,} bytes in, {plan.bytes_out:,} out")
        done = mergeloom.merge(RECIPE, "merged", overwrite=True)
    except mergeloom.MergeloomError as error:
        for problem in error.problems:  # all of them, not only the first
            print(problem, file=sys.stderr)
        return 2
    print(f"wrote {done.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

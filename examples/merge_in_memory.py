"""Merging state dicts that are in memory, for instance checkpoints of a training run.

Nothing is read from or written to disk. The recipe is a mapping here; its model names are the keys
under which the state dicts are given.
"""

from __future__ import annotations

import torch

import mergeloom


def checkpoint(step: int) -> dict[str, torch.Tensor]:
    """Stand in for a state dict of your own."""
    generator = torch.Generator().manual_seed(step)
    return {
        "layers.0.weight": torch.randn(8, 8, generator=generator),
        "layers.1.weight": torch.randn(8, 8, generator=generator),
    }


steps = {f"step-{step}": checkpoint(step) for step in (100, 200, 300)}
recipe = {"merge_method": "linear", "models": list(steps), "parameters": {"weight": 1}}

average = mergeloom.merge_state_dicts(recipe, steps)

expected = sum(state["layers.1.weight"] for state in steps.values()) / len(steps)
torch.testing.assert_close(average["layers.1.weight"], expected)
print(f"averaged {len(steps)} checkpoints of {len(average)} tensors")

"""Random numbers that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


class Stream:
    """The random numbers of one model in one output tensor.

    Every block has its own generator (SFC64) seeded from (seed, tensor, model, block), so the
    numbers are the same for any number of threads, order of work or models, and after a resume.
    """

    def __init__(self, seed: int, tensor: str, model: str) -> None:
        text = "\0".join((str(seed), tensor, model)).encode()
        self._entropy = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")

    def draw(self, start: int, count: int, block: int) -> torch.Tensor:
        """Uniform numbers in [-0.5, 0.5) for elements [start, start + count), float32.

        Blocks are counted from ``start`` in steps of ``block`` elements; ``start`` itself names
        the first one, so a block of whole rows draws the same however long it is.
        """
        pieces = []
        for offset in range(0, count, block):
            size = min(block, count - offset)
            key = np.random.SeedSequence(self._entropy, spawn_key=(start + offset,))
            raw = np.random.SFC64(key).random_raw((size + 1) // 2)
            pieces.append(torch.from_numpy(raw.view(np.int32))[:size])
        drawn = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return drawn.float().mul_(2.0**-32)

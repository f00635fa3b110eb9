"""Places of magnitudes among those of their row, and random choices weighed by them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from mergeloom.engine.order import bits_of
from mergeloom.engine.randomness import Bools, Words

Array = np.ndarray[Any, Any]


def rows_along(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Flat elements of whole indices of the first axis as rows along the second one.

    Of a tensor with one axis, all of it is the row. Shape (rows, row).
    """
    row = shape[1] if len(shape) > 1 else values.numel()
    return values.view(-1, row, math.prod(shape[2:])).transpose(1, 2).reshape(-1, row)


def flat_again(rows: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The opposite of :func:`rows_along`."""
    rest = math.prod(shape[2:])
    return rows.view(-1, rest, rows.shape[1]).transpose(1, 2).reshape(-1)


def mean_rank(sizes: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Each element's rank in its row, divided by the largest rank; equals share their mean rank.

    The only element of a row has 0.5.
    """
    rows = rows_along(sizes, shape).cpu()
    ordered = torch.from_numpy(np.sort(rows.numpy(), axis=1))
    first = torch.searchsorted(ordered, rows)
    behind = torch.searchsorted(ordered, rows, right=True)
    last = rows.shape[1] - 1
    share = (first + behind - 1).to(sizes.dtype).div_(2 * last or 1)
    return flat_again(share if last else share.fill_(0.5), shape).to(sizes.device)


def chosen_by_rank(
    sizes: torch.Tensor, shape: tuple[int, ...], words: Words, lowest: float, highest: float
) -> Bools:
    """True with a probability that rises in equal steps with the rank of a size in its row.

    The smallest of a row has probability ``lowest``, the largest ``highest``, equals the mean of
    theirs; all exact to 2⁻¹⁶. A word says from which rank on its element is chosen, so a sorted
    row is enough: the element is compared with the size that has this rank. The word's last bit
    says whether the element counts as the first or the last of its equals.
    """
    rows = bits_of(rows_along(sizes, shape))  # (rows, row)
    count, row = rows.shape
    # From rank r on: as the last of its equals if size >= as_last[r], as the first of them if
    # size >= as_first[r]; rank 0 is always reached and rank `row` never.
    limits = np.empty((count, 2, row + 1), dtype=rows.dtype)
    as_last, as_first = limits[:, 0], limits[:, 1]
    as_last[:, :-1] = rows
    as_last[:, :-1].sort(axis=1)
    as_last[:, -1] = np.iinfo(rows.dtype).max
    np.add(as_last[:, :-1], 1, out=as_first[:, 1:])
    as_first[:, 0] = -1
    kind = np.int32 if limits.size < 2**31 else np.int64
    places = torch.from_numpy(_places(row, lowest, highest).astype(kind, copy=False))
    drawn = rows_along(torch.from_numpy(words.view(np.int16)), shape).numpy().view(np.uint16)
    wanted = places.index_select(0, torch.from_numpy(drawn.astype(np.int32).reshape(-1)))
    wanted.view(count, row).add_(torch.arange(count, dtype=wanted.dtype)[:, None] * 2 * (row + 1))
    limit = torch.from_numpy(limits.reshape(-1)).index_select(0, wanted).numpy()
    chosen = rows.reshape(-1) >= limit
    back = flat_again(torch.from_numpy(chosen).view(count, row), shape)
    flat: Bools = back.numpy()
    return flat


@functools.lru_cache(maxsize=16)
def _places(row: int, lowest: float, highest: float) -> Array:
    """For every word where a row's limits say whether to choose its element, shape (65536,)."""
    words = np.arange(1 << 16)
    steps = np.linspace(lowest, highest, row) if row > 1 else np.array([(lowest + highest) / 2])
    rank = np.searchsorted(steps, ((words >> 1) + 0.5) / (1 << 15), side="right")
    places: Array = (rank + (words & 1) * (row + 1)).astype(np.int32)
    return places

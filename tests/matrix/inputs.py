"""What a forward pass of each kind of model is given: small, fixed, longer than every window."""

from __future__ import annotations

from typing import Any

import torch

IMAGE, FIRST_WORD, WORDS = 5, 7, 128


def make_inputs(kind: str) -> dict[str, Any]:
    """Arguments of a forward pass, by the word in ``Case.inputs``."""
    random = torch.Generator().manual_seed(7)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    def words(rows: int, count: int) -> torch.Tensor:
        return torch.randint(FIRST_WORD, WORDS, (rows, count), generator=random)

    def prompt(images: int) -> torch.Tensor:
        return torch.cat([words(1, 2), torch.full((1, images), IMAGE), words(1, 9)], dim=1)

    pixels = numbers(1, 3, 16, 16)
    match kind:
        case "text":
            return {"input_ids": words(2, 12)}
        case "halves":
            return {"input_ids": words(2, 12), "decoder_input_ids": words(2, 11)}
        case "speech":
            return {"input_features": numbers(2, 8, 24), "decoder_input_ids": words(2, 11)}
        case "image":
            return {"pixel_values": pixels}
        case "pair":
            return {"input_ids": words(2, 12), "pixel_values": pixels}
        case "prompt" | "prompt1":
            return {"input_ids": prompt(1 if kind == "prompt1" else 4), "pixel_values": pixels}
        case "sized":
            sizes = torch.tensor([[16, 16]])
            return {"input_ids": prompt(4), "pixel_values": pixels, "image_sizes": sizes}
        case "tiles":
            return {"input_ids": prompt(1), "pixel_values": pixels[None]}
        case "patches":
            ids = prompt(4)
            return {
                "input_ids": ids,
                "pixel_values": numbers(16, 3 * 2 * 4 * 4),
                "image_grid_thw": torch.tensor([[1, 4, 4]]),
                "mm_token_type_ids": (ids == IMAGE).int(),
            }
    raise ValueError(f"no inputs of kind {kind!r}")

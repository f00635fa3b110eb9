"""Perplexity of a causal language model on a plain English paragraph and on its words shuffled.

    python benchmarks/perplexity.py MODEL_DIR [MODEL_DIR ...]

A sanity check for merges: a model that still knows English is at ease with the paragraph (about 8
to 25 for a small model) and lost on the same words in random order (hundreds). A broken merge is
lost on both. The two numbers of a merge should lie near those of its parents.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

# Written for this file, so that no model has seen it.
PARAGRAPH = """\
The old bridge at the edge of the village had been closed for repairs since the spring, and so \
everyone who worked in the town had to take the long road around the lake. At first people \
complained about the extra half hour, but by the end of the summer many of them had begun to \
enjoy it. They saw the water in the early light, the fishermen pulling their boats up on the \
shore, and the children waiting for the school bus under the trees. When the engineers finally \
announced that the bridge was safe again, there was a small celebration with music and cake, and \
the mayor gave a speech about patience. The next morning, however, a good number of cars still \
turned left at the crossroads and followed the road along the lake. Nobody had told them to do it. \
They had simply found out that the shortest way home is not always the best one.
"""


def shuffled_words(text: str, seed: int = 0) -> str:
    """Return the words of `text` in a seeded random order, joined by single spaces."""
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """Return exp of the mean next-token loss (natural log) of `text`, in float32."""
    import torch

    tokens = torch.tensor([tokenizer(text.strip())["input_ids"]])  # (1, tokens)
    with torch.inference_mode():
        loss = model(input_ids=tokens, labels=tokens).loss
    return math.exp(loss.item())


def measure(folder: Path) -> dict[str, Any]:
    """Load the checkpoint in `folder` and return both perplexities and their ratio."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # float32 arithmetic on the stored weights: the number then depends on the weights alone.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = perplexity(model, tokenizer, PARAGRAPH)
    shuffled = perplexity(model, tokenizer, shuffled_words(PARAGRAPH))
    return {
        "model": str(folder),
        "plain": round(plain, 3),
        "shuffled": round(shuffled, 1),
        "shuffled_over_plain": round(shuffled / plain, 2),
    }


def main() -> None:
    """Print a line for every checkpoint, or JSON lines with `--json`."""
    parser = argparse.ArgumentParser(description="perplexity on plain and on shuffled English")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    for folder in arguments.models:
        result = measure(folder)
        if arguments.json:
            print(json.dumps(result), flush=True)
        else:
            print(
                f"{result['model']}: plain {result['plain']}, shuffled {result['shuffled']} "
                f"({result['shuffled_over_plain']} times the plain one)",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""The two skills of the demo: adding two numbers and sorting the letters of a word.

A problem is a short text, ``add 47 85=`` or ``sort qwertyu=``; a model solves it when greedy
decoding continues it with exactly the answer and then ends. One problem in ten is held out:
training never sees it, nor any problem written with the same characters (``add 85 47=``, another
order of the letters).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from mergeloom.demo.llama import Model, forward, load

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Every model of the demo has this vocabulary: the special tokens, then one token per character.
VOCABULARY: Mapping[str, int] = {
    token: index for index, token in enumerate((PAD, BOS, EOS, UNK, *"0123456789", *LETTERS, *" ="))
}
WORD_LENGTH = 7
MAX_PROBLEMS = 500  # about 800 additions are held out; a sample must stay well below that
# Marks a position that is not part of the answer; the value cross_entropy ignores by default.
NO_TARGET = -100


class Problem(NamedTuple):
    """A question as the model reads it, up to and including ``=``, and its one right answer."""

    question: str
    answer: str


Draw = Callable[[random.Random], Problem]


def random_word(rng: random.Random, length: int) -> str:
    """A word of ``length`` random lower-case letters."""
    return "".join(rng.choice(LETTERS) for _ in range(length))


def addition(first: int, second: int) -> Problem:
    """The problem of adding two numbers."""
    return Problem(f"add {first} {second}=", str(first + second))


def sorting(word: str) -> Problem:
    """The problem of putting the letters of a word in alphabetical order."""
    return Problem(f"sort {word}=", "".join(sorted(word)))


def draw_addition(rng: random.Random) -> Problem:
    """Two numbers of two digits each."""
    return addition(rng.randint(10, 99), rng.randint(10, 99))


def draw_sorting(rng: random.Random) -> Problem:
    """A word of ``WORD_LENGTH`` letters."""
    return sorting(random_word(rng, WORD_LENGTH))


SKILLS: Mapping[str, Draw] = {"add": draw_addition, "sort": draw_sorting}


def is_held_out(problem: Problem) -> bool:
    """Whether the problem is kept from training; its characters decide, whatever their order."""
    return zlib.crc32("".join(sorted(problem.question)).encode()) % 10 == 0


def training_problem(rng: random.Random, draw: Draw) -> Problem:
    """One problem that is not held out."""
    while is_held_out(problem := draw(rng)):
        pass
    return problem


def held_out_problems(skill: str, count: int, seed: int = 0) -> list[Problem]:
    """``count`` different held-out problems of a skill, the same ones for the same seed."""
    if not 0 < count <= MAX_PROBLEMS:
        raise ValueError(f"count must be between 1 and {MAX_PROBLEMS}, got {count}")
    rng = random.Random(seed)  # noqa: S311 - reproducible problems, not secrets
    found: dict[Problem, None] = {}
    while len(found) < count:
        if is_held_out(problem := SKILLS[skill](rng)):
            found[problem] = None
    return list(found)


def encode(problems: Iterable[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Problems as ``(tokens, targets)``, both (problems, length), padded on the right.

    ``tokens`` is ``<bos>``, question, answer; ``targets`` holds the next token wherever that
    belongs to the answer or to the ``<eos>`` after it, and ``NO_TARGET`` elsewhere.
    """
    rows, targets = [], []
    for question, answer in problems:
        row = [BOS, *question, *answer, EOS]
        rows.append([VOCABULARY[token] for token in row])
        targets.append([NO_TARGET] * len(question) + rows[-1][len(question) + 1 :])
    length = max(map(len, targets))
    tokens = [row[:-1] + [VOCABULARY[PAD]] * (length + 1 - len(row)) for row in rows]
    padded = [target + [NO_TARGET] * (length - len(target)) for target in targets]
    return torch.tensor(tokens), torch.tensor(padded)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread for models this small: more of them wait for each other on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def generate(model: Model, question: str, max_tokens: int = 12) -> str:
    """The model's greedy answer to a question, up to ``<eos>`` or ``max_tokens`` characters."""
    names = {index: token for token, index in model.vocabulary.items()}
    tokens = [model.vocabulary[token] for token in (BOS, *question)]
    answer = ""
    for _ in range(max_tokens):
        with _one_thread():
            logits = forward(model.config, model.weights, torch.tensor([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
        if names[tokens[-1]] == EOS:
            break
        answer += names[tokens[-1]]
    return answer


@torch.inference_mode()
def accuracy(model: Model, skill: str, problems: int = 200) -> float:
    """The share, in [0, 1], of held-out problems that greedy decoding solves exactly.

    Greedy decoding writes the right answer if and only if, after every right beginning of it, the
    likeliest token is the next right one. So one forward pass over the solved problems is enough.
    """
    tokens, targets = encode(held_out_problems(skill, problems))
    with _one_thread():  # and a hundred problems at a time, which stay in the cache
        logits = [forward(model.config, model.weights, part) for part in torch.split(tokens, 100)]
    best = torch.cat(logits).argmax(dim=-1)  # (problems, length)
    solved = ((best == targets) | (targets == NO_TARGET)).all(dim=-1)
    return solved.float().mean().item()


def score(model_dir: Path, skill: str, problems: int = 200) -> float:
    """``accuracy`` of the checkpoint in a directory, which must have the demo's vocabulary."""
    return accuracy(load(model_dir), skill, problems)

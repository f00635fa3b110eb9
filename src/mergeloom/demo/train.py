"""Train the three models of the demo: ``python -m mergeloom.demo.train OUT_DIR``.

1. *base* learns, from random weights, a mixture of easier tasks: adding when one number has a
   single digit, subtracting, doubling, counting, copying, reversing words and sorting words of up
   to five letters. It is never shown a problem of either skill.
2. *add* and *sort* are fine-tuned from the base on one skill each. Neither sees the problems or the
   weights of the other.

A merge adds the two changes, so each must survive being scaled and being disturbed by the other.
Four ordinary measures see to that: only the projection matrices move; a fifth of each batch repeats
the tasks of the base; a penalty on the squared change keeps it small (L2-SP); and each step scales
the change by a random factor between 0.4 and 1 before it takes the loss, so that the skill is there
along most of the line from the base. In a trial with none of the last three, the average of the two
kept a fifth of each skill.

Everything is computed in float32 on one thread per model, from fixed seeds, so the same machine and
torch write the same bytes every time; another processor may round differently. It took nine to ten
minutes on two cores that other programs were using too (the two specialists are trained side by
side); on idle cores expect about five.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional

from mergeloom.demo import skills
from mergeloom.demo.llama import Config, Weights, forward, load, write_safetensors
from mergeloom.demo.skills import Draw, Problem

CONFIG = Config(
    vocab_size=len(skills.VOCABULARY),
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)
BATCH = 96
BASE_STEPS = 1400
SPECIALIST_STEPS = 500
REPLAY = 0.2  # share of a specialist's batch drawn from the base's tasks
DELTA_SCALE = (0.4, 1.0)  # each step multiplies the change by a random number from this range
DELTA_PENALTY = 3e-4  # times the squared norm of the change


# --- the base's tasks -------------------------------------------------------------------------


def _small_addition(rng: random.Random) -> Problem:
    numbers = [rng.randint(0, 99), rng.randint(0, 9)]
    rng.shuffle(numbers)
    return skills.addition(*numbers)


def _subtraction(rng: random.Random) -> Problem:
    first, second = rng.randint(10, 99), rng.randint(0, 9)
    return Problem(f"less {first} {second}=", str(first - second))


def _doubling(rng: random.Random) -> Problem:
    number = rng.randint(0, 99)
    return Problem(f"twice {number}=", str(2 * number))


def _counting(rng: random.Random) -> Problem:
    number = rng.randint(0, 198)
    return Problem(f"next {number}=", str(number + 1))


def _copying_number(rng: random.Random) -> Problem:
    number = str(rng.randint(0, 198))
    return Problem(f"copy {number}=", number)


def _short_sorting(rng: random.Random) -> Problem:
    return skills.sorting(skills.random_word(rng, rng.randint(2, 5)))


def _reversing(rng: random.Random) -> Problem:
    word = skills.random_word(rng, rng.randint(2, skills.WORD_LENGTH))
    return Problem(f"flip {word}=", word[::-1])


def _copying_word(rng: random.Random) -> Problem:
    word = skills.random_word(rng, rng.randint(2, skills.WORD_LENGTH))
    return Problem(f"copy {word}=", word)


# Each task with its relative frequency.
BASE_TASKS: Mapping[Draw, float] = {
    _small_addition: 2.0,
    _subtraction: 1.0,
    _doubling: 0.5,
    _counting: 0.5,
    _copying_number: 0.5,
    _short_sorting: 2.0,
    _reversing: 1.0,
    _copying_word: 1.0,
}


def _draw_batch(
    rng: random.Random, tasks: Mapping[Draw, float], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = rng.choices(list(tasks), list(tasks.values()), k=size)
    return skills.encode(skills.training_problem(rng, draw) for draw in chosen)


# --- training ---------------------------------------------------------------------------------


def initial_weights(config: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of a Hugging Face Llama checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def normal(name: str, rows: int, columns: int, std: float = 0.05) -> None:
        weights[name] = torch.randn(rows, columns, generator=generator) * std

    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    normal("model.embed_tokens.weight", config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        weights[f"{layer}.input_layernorm.weight"] = torch.ones(hidden)
        normal(f"{layer}.self_attn.q_proj.weight", queries, hidden)
        normal(f"{layer}.self_attn.k_proj.weight", keys, hidden)
        normal(f"{layer}.self_attn.v_proj.weight", keys, hidden)
        # What is added to the residual stream starts small.
        normal(f"{layer}.self_attn.o_proj.weight", hidden, queries, std=0.02)
        weights[f"{layer}.post_attention_layernorm.weight"] = torch.ones(hidden)
        normal(f"{layer}.mlp.gate_proj.weight", inner, hidden)
        normal(f"{layer}.mlp.up_proj.weight", inner, hidden)
        normal(f"{layer}.mlp.down_proj.weight", hidden, inner, std=0.02)
    weights["model.norm.weight"] = torch.ones(hidden)
    return weights


def _learning_rate(step: int, steps: int, peak: float) -> float:
    """A rise over the first 100 steps times half a cosine down to a twentieth of ``peak``."""
    rise = min(1.0, (step + 1) / 100)
    return peak * rise * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)


def _loss(
    config: Config, weights: Weights, batch: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    tokens, targets = batch
    logits = forward(config, weights, tokens)
    return functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=skills.NO_TARGET
    )


def _optimizer(leaves: Sequence[torch.Tensor], weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(leaves, betas=(0.9, 0.98), weight_decay=weight_decay)


def _step(
    optimizer: torch.optim.AdamW, leaves: Sequence[torch.Tensor], loss: torch.Tensor, rate: float
) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(leaves, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def train_base(steps: int = BASE_STEPS, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Train the base from random weights; returns the weights it will be stored with (bfloat16)."""
    _fix_arithmetic()
    rng = random.Random(0)  # noqa: S311 - reproducible problems, not secrets
    weights = {name: w.requires_grad_() for name, w in initial_weights(CONFIG).items()}
    leaves = list(weights.values())
    optimizer = _optimizer(leaves, weight_decay=0.1)
    for step in range(steps):
        loss = _loss(CONFIG, weights, _draw_batch(rng, BASE_TASKS, batch))
        _step(optimizer, leaves, loss, _learning_rate(step, steps, 3e-3))
        _report("base", step, steps, loss)
    return {name: w.detach().bfloat16() for name, w in weights.items()}


def train_specialist(
    base: Weights, skill: str, steps: int = SPECIALIST_STEPS, batch: int = BATCH
) -> dict[str, torch.Tensor]:
    """Fine-tune the base on one skill; returns bfloat16 weights."""
    _fix_arithmetic()
    rng = random.Random(1)  # noqa: S311 - reproducible problems, not secrets
    start = {name: w.float() for name, w in base.items()}
    deltas = {
        name: torch.zeros_like(w, requires_grad=True) for name, w in start.items() if "proj" in name
    }
    leaves = list(deltas.values())
    total = sum(BASE_TASKS.values())
    tasks = {draw: REPLAY * share / total for draw, share in BASE_TASKS.items()}
    tasks[skills.SKILLS[skill]] = 1 - REPLAY
    optimizer = _optimizer(leaves, weight_decay=0.0)  # the penalty below takes its place
    for step in range(steps):
        problems = _draw_batch(rng, tasks, batch)
        scale = rng.uniform(*DELTA_SCALE)
        weights = start | {name: start[name] + scale * delta for name, delta in deltas.items()}
        loss = _loss(CONFIG, weights, problems)
        penalty = torch.stack([delta.square().sum() for delta in leaves]).sum()
        rate = _learning_rate(step, steps, 1e-3)
        _step(optimizer, leaves, loss + DELTA_PENALTY * penalty, rate)
        _report(skill, step, steps, loss)
    changed = {name: start[name] + delta.detach() for name, delta in deltas.items()}
    return {name: w.bfloat16() for name, w in (start | changed).items()}


def _fix_arithmetic() -> None:
    """Make sums independent of how many cores there are and how busy they are."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def _report(name: str, step: int, steps: int, loss: torch.Tensor) -> None:
    if (step + 1) % 100 == 0:
        print(f"{name}: step {step + 1} of {steps}, loss {loss.item():.4f}", flush=True)


# --- files ------------------------------------------------------------------------------------


def config_json(config: Config) -> dict[str, object]:
    """The complete ``config.json`` of a transformers ``LlamaForCausalLM``."""
    token = skills.VOCABULARY
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": token[skills.BOS],
        "eos_token_id": token[skills.EOS],
        "pad_token_id": token[skills.PAD],
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": 64,
        "mlp_bias": False,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        # The spelling of transformers 5, then those of transformers 4.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def tokenizer_json() -> dict[str, object]:
    """One token per character (a BPE without merges), ``<bos>`` in front."""
    token = skills.VOCABULARY
    special = (skills.PAD, skills.BOS, skills.EOS, skills.UNK)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

    def template(*names: str) -> list[dict[str, dict[str, object]]]:
        sequences = [{"Sequence": {"id": name, "type_id": 0}} for name in names]
        return [{"SpecialToken": {"id": skills.BOS, "type_id": 0}}, *sequences]

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token[name], "content": name, "special": True, **flags} for name in special
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template("A"),
            "pair": template("A", "B"),
            "special_tokens": {
                skills.BOS: {
                    "id": skills.BOS,
                    "ids": [token[skills.BOS]],
                    "tokens": [skills.BOS],
                }
            },
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": skills.UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(token),
            "merges": [],
        },
    }


def save(model_dir: Path, weights: Weights) -> None:
    """Write a checkpoint directory as Hugging Face transformers would."""
    token = skills.VOCABULARY
    files: dict[str, dict[str, object]] = {
        "config.json": config_json(CONFIG),
        "generation_config.json": {
            "bos_token_id": token[skills.BOS],
            "eos_token_id": token[skills.EOS],
            "pad_token_id": token[skills.PAD],
            "max_new_tokens": 12,
        },
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": skills.BOS,
            "eos_token": skills.EOS,
            "pad_token": skills.PAD,
            "unk_token": skills.UNK,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 64,
        },
    }
    model_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (model_dir / name).write_text(text, "utf-8")
    write_safetensors(model_dir / "model.safetensors", weights)


def _specialist(out_dir: Path, skill: str) -> None:
    """Train and save one specialist; runs in a process of its own."""
    save(out_dir / skill, train_specialist(load(out_dir / "base").weights, skill))


def main(out_dir: Path) -> None:
    """Train the base, then both specialists, and print what each can do."""
    start = time.perf_counter()
    save(out_dir / "base", train_base())
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(len(skills.SKILLS), mp_context=spawn) as pool:
        for done in [pool.submit(_specialist, out_dir, skill) for skill in skills.SKILLS]:
            done.result()
    for name in ("base", *skills.SKILLS):
        scores = {skill: skills.score(out_dir / name, skill, 500) for skill in skills.SKILLS}
        print(name, *(f"{skill}={share:.3f}" for skill, share in scores.items()))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the three models of the demo.")
    parser.add_argument("out_dir", type=Path)
    main(parser.parse_args().out_dir)

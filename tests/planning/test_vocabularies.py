"""Merging models with different vocabularies: the rows, the config and the files that come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import llama_config, save
from safetensors.torch import load_file

import mergeloom
from mergeloom import MergeloomError

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(13))]  # 16 tokens


def word_level(tokens: list[str | None], added: tuple[str, ...] = ("<s>", "</s>")) -> str:
    """A tokenizer.json that knows whole words; None is a hole in the ids."""
    vocabulary = {t: i for i, t in enumerate(tokens) if t is not None}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": vocabulary[t], "content": t, "special": True, **flags}
                for t in added
                if t in vocabulary
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        }
    )


def model(
    folder: Path,
    tokens: list[str | None],
    *,
    rows: int | None = None,
    seed: int = 0,
    head: bool = True,
    files: dict[str, str] | None = None,
    **config: Any,
) -> Path:
    """A one-layer llama of width 8 with a tokenizer of these tokens."""
    random = torch.Generator().manual_seed(seed)
    rows = rows or len(tokens)
    shapes = {"model.embed_tokens.weight": (rows, 8)}
    shapes["model.layers.0.mlp.up_proj.weight"] = (12, 8)
    shapes["model.layers.0.input_layernorm.weight"] = (8,)
    shapes["model.norm.weight"] = (8,)
    if head:
        shapes["lm_head.weight"] = (rows, 8)
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    settings = {"vocab_size": rows, "tie_word_embeddings": not head, **config}
    texts = {"tokenizer.json": word_level(tokens), "tokenizer_config.json": "{}", **(files or {})}
    return save(folder, tensors, llama_config(1, **settings), files=texts)


def merged(tmp_path: Path, recipe: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict, Path]:
    out = tmp_path / "out"
    mergeloom.merge(recipe, out)
    config = json.loads((out / "config.json").read_text())
    return load_file(out / "model.safetensors"), config, out


def tokens_of(out: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()


def linear(a: Path, b: Path, wa: float = 0.75, wb: float = 0.25, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [
            {"model": str(a), "parameters": {"weight": wa}},
            {"model": str(b), "parameters": {"weight": wb}},
        ],
        **more,
    }


EMBEDDING = "model.embed_tokens.weight"


def table(folder: Path, name: str = EMBEDDING) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[name]


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


# --- no setting --------------------------------------------------------------------------------


def test_ids_with_other_meanings_are_never_merged_by_index(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", [*WORDS[:3], *(f"v{i}" for i in range(13))], seed=1)
    with pytest.raises(MergeloomError) as caught:
        mergeloom.plan(linear(a, b))
    (problem,) = caught.value.problems
    assert "13 token ids of" in problem.message
    assert "3 of 16 and 16 tokens are shared" in problem.message
    assert all(word in problem.hint for word in ("base", "union", "name of a model"))


def test_a_base_with_more_tokens_keeps_its_rows(tmp_path):
    a = model(tmp_path / "a", [*WORDS, "<extra>", "<more>"])
    b = model(tmp_path / "b", WORDS, seed=1)
    tensors, config, out = merged(tmp_path, linear(a, b))
    close(tensors[EMBEDDING][:16], 0.75 * table(a)[:16] + 0.25 * table(b))
    close(tensors[EMBEDDING][16:], table(a)[16:])
    close(tensors["lm_head.weight"][16:], table(a, "lm_head.weight")[16:])
    assert config["vocab_size"] == 18
    assert (out / "tokenizer.json").read_text() == (a / "tokenizer.json").read_text()


def test_tokens_that_the_base_has_not_are_left_out_and_told(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", [*WORDS, "<extra>"], seed=1)
    plan = mergeloom.plan(linear(a, b))
    assert any("'<extra>'" in w.message and "union" in w.message for w in plan.warnings)
    tensors, config, _ = merged(tmp_path, linear(a, b))
    close(tensors[EMBEDDING], 0.75 * table(a) + 0.25 * table(b)[:16])
    assert config["vocab_size"] == 16


def test_padding_rows_of_either_model_do_not_matter(tmp_path):
    a = model(tmp_path / "a", WORDS, rows=32)
    b = model(tmp_path / "b", WORDS, seed=1, rows=24)
    tensors, config, _ = merged(tmp_path, linear(a, b))
    close(tensors[EMBEDDING][:24], 0.75 * table(a)[:24] + 0.25 * table(b))
    close(tensors[EMBEDDING][24:], table(a)[24:])
    assert config["vocab_size"] == 32


# --- tokenizer settings ------------------------------------------------------------------------


def test_base_keeps_padding_and_config(tmp_path):
    a = model(tmp_path / "a", WORDS, rows=32)
    b = model(tmp_path / "b", WORDS, rows=32, seed=1)
    tensors, config, _ = merged(tmp_path, linear(a, b, tokenizer_source="base"))
    close(tensors[EMBEDDING], 0.75 * table(a) + 0.25 * table(b))
    assert config["vocab_size"] == 32


def test_base_reads_the_rows_of_moved_tokens_where_they_are(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", [*WORDS[:3], *reversed(WORDS[3:])], seed=1)
    tensors, _, out = merged(tmp_path, linear(a, b, tokenizer_source="base"))
    order = [*range(3), *range(15, 2, -1)]
    close(tensors[EMBEDDING], 0.75 * table(a) + 0.25 * table(b)[order])
    assert tokens_of(out) == {w: i for i, w in enumerate(WORDS)}


def test_union_appends_in_the_order_of_the_recipe(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", ["<unk>", "x", "w0", "y"], seed=1)
    c = model(tmp_path / "c", ["<unk>", "y", "z"], seed=2)
    recipe = linear(a, b, 0.5, 0.25, tokenizer_source="union", parameters={"normalize": False})
    recipe["models"].append({"model": str(c), "parameters": {"weight": 0.25}})
    tensors, config, out = merged(tmp_path, recipe)
    assert tokens_of(out) == {w: i for i, w in enumerate([*WORDS, "x", "y", "z"])}
    assert config["vocab_size"] == 19
    rows = tensors[EMBEDDING]
    close(rows[16], table(b)[1])  # only b has x: all inputs get its row, and the weights sum to 1
    y = (table(b)[3] + table(c)[1]) / 2  # without a base: the mean of those that have it
    close(rows[17], 0.5 * y + 0.25 * table(b)[3] + 0.25 * table(c)[1])
    close(rows[18], table(c)[2])
    # c lacks w0 and gets the mean of a and b; w1 is only in a
    close(rows[4], table(a)[4])
    close(rows[3], 0.5 * table(a)[3] + 0.25 * table(b)[2] + 0.125 * (table(a)[3] + table(b)[2]))


@pytest.mark.parametrize("source", ["model:", ""])
def test_the_tokenizer_of_a_model(tmp_path, source):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", ["<unk>", "w0", "<s>", "</s>"], seed=1, rows=6)
    tensors, config, out = merged(tmp_path, linear(a, b, tokenizer_source=f"{source}{b}"))
    close(tensors[EMBEDDING][:4], 0.75 * table(a)[[0, 3, 1, 2]] + 0.25 * table(b)[:4])
    close(tensors[EMBEDDING][4:], table(b)[4:])
    assert config["vocab_size"] == 6
    assert tokens_of(out) == {"<unk>": 0, "w0": 1, "<s>": 2, "</s>": 3}


def test_a_tokenizer_from_a_folder_without_weights(tmp_path):
    a, b = model(tmp_path / "a", WORDS), model(tmp_path / "b", WORDS, seed=1)
    lender = tmp_path / "lender"
    lender.mkdir()
    (lender / "tokenizer.json").write_text(word_level(["<unk>", "w5", "w4"]))
    tensors, config, out = merged(tmp_path, linear(a, b, tokenizer_source=str(lender)))
    close(tensors[EMBEDDING][1], 0.75 * table(a)[8] + 0.25 * table(b)[8])
    assert (config["vocab_size"], len(tokens_of(out))) == (3, 3)


def test_ids_beyond_the_rows_are_dropped(tmp_path):
    unused = {"tokenizer.json": word_level([*WORDS, "<unused>"], ("<s>", "</s>", "<unused>"))}
    a = model(tmp_path / "a", WORDS, files=unused)
    b = model(tmp_path / "b", WORDS, files=unused, seed=1)
    tensors, config, out = merged(tmp_path, linear(a, b, tokenizer_source="base"))
    assert "<unused>" not in tokens_of(out)
    assert (config["vocab_size"], len(tensors[EMBEDDING])) == (16, 16)


def test_a_hole_in_the_ids_keeps_its_row(tmp_path):
    a = model(tmp_path / "a", [*WORDS[:5], None, *WORDS[5:15]])
    b = model(tmp_path / "b", WORDS, seed=1)
    tensors, _, out = merged(tmp_path, linear(a, b, tokenizer_source="union"))
    assert tokens_of(out)["w12"] == 16
    assert len(tensors[EMBEDDING]) == 17
    close(tensors[EMBEDDING][5], table(a)[5])


def test_padding_to_a_multiple(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", [*WORDS, "x"], seed=1)
    tensors, config, _ = merged(
        tmp_path, linear(a, b, tokenizer={"source": "union", "pad_to_multiple_of": 8})
    )
    assert (config["vocab_size"], len(tensors[EMBEDDING])) == (24, 24)
    full_a = torch.cat([table(a), table(b)[16:]])
    mean = 0.75 * full_a.mean(0) + 0.25 * table(b).mean(0)
    for row in range(17, 24):
        close(tensors[EMBEDDING][row], mean)


def test_a_padded_donor_stays_padded(tmp_path):
    a = model(tmp_path / "a", WORDS, rows=32)
    b = model(tmp_path / "b", ["<unk>", *(f"v{i}" for i in range(20))], seed=1)
    tensors, config, _ = merged(tmp_path, linear(a, b, tokenizer_source="union"))
    assert (config["vocab_size"], len(tensors[EMBEDDING])) == (64, 64)  # 16 + 20 tokens, ids to 35


# --- single tokens -----------------------------------------------------------------------------


def test_where_single_tokens_come_from(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", [*WORDS, "x"], seed=1)
    c = model(tmp_path / "c", ["q", "w0"], seed=2)
    tokens = {
        "w0": {"source": str(b), "force": True},
        "w1": {"source": {"kind": "zero"}, "force": True},
        "new": {"source": {"kind": "model_token", "model": str(c), "token": "q"}},
        "by id": {"source": {"kind": "model_token", "model": str(c), "token_id": 1}},
        "bare": None,
        "w2": {"force": True},
    }
    recipe = linear(a, b, tokenizer={"source": "union", "tokens": tokens}, base_model=str(a))
    recipe["merge_method"] = "linear"
    tensors, _, out = merged(tmp_path, recipe)
    ids, rows = tokens_of(out), tensors[EMBEDDING]
    close(rows[ids["w0"]], table(b)[3])
    close(rows[ids["w1"]], torch.zeros(8))
    close(rows[ids["new"]], table(c)[0])
    close(rows[ids["by id"]], table(c)[1])
    close(rows[ids["bare"]], torch.zeros(8))
    close(rows[ids["w2"]], table(a)[5])
    close(rows[ids["w3"]], 0.75 * table(a)[6] + 0.25 * table(b)[6])


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "task_arithmetic", "passthrough"])
def test_a_forced_row_is_exact_whatever_the_method(tmp_path, method):
    a, b = model(tmp_path / "a", WORDS), model(tmp_path / "b", WORDS, seed=1)
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": str(a),
        "models": [{"model": str(a)}, {"model": str(b)}],
        "tokenizer": {"source": "base", "tokens": {"w4": {"source": str(b), "force": True}}},
    }
    match method:
        case "slerp":
            recipe["parameters"] = {"t": 0.3}
        case "passthrough":
            recipe["models"] = [{"model": str(a), "parameters": {"scale": 3.0}}]
            recipe["tokenizer"]["tokens"]["w4"]["source"] = str(a)
            b = a
        case "linear":
            recipe["parameters"] = {"weight": 0.8, "normalize": False}
        case _:
            recipe["parameters"] = {"weight": 0.6, "density": 0.5}
            if method == "task_arithmetic":
                del recipe["parameters"]["density"]
    tensors, _, _ = merged(tmp_path, recipe)
    for name in (EMBEDDING, "lm_head.weight"):
        assert torch.equal(tensors[name][7], table(b, name)[7])
        assert not torch.equal(tensors[name][8], table(b, name)[8])


def test_missing_tokens_from_the_models_own_pieces(tmp_path):
    a = model(tmp_path / "a", WORDS)
    b = model(tmp_path / "b", ["<unk>", "w0 w1"], seed=1)
    recipe = linear(a, b, tokenizer={"source": "union", "missing": "subword"})
    tensors, _, out = merged(tmp_path, recipe)
    row = tokens_of(out)["w0 w1"]
    own = (table(a)[3] + table(a)[4]) / 2  # a's tokenizer splits the text into w0 and w1
    close(tensors[EMBEDDING][row], 0.75 * own + 0.25 * table(b)[1])


# --- tied heads, config, files -----------------------------------------------------------------


def test_tied_and_untied_with_different_vocabularies(tmp_path):
    a = model(tmp_path / "a", WORDS, head=False)
    b = model(tmp_path / "b", [*WORDS, "x"], seed=1)
    tensors, config, _ = merged(tmp_path, linear(a, b, tokenizer_source="union"))
    assert config["tie_word_embeddings"] is False
    close(tensors["lm_head.weight"][:16],
          0.75 * table(a) + 0.25 * table(b, "lm_head.weight")[:16])  # fmt: skip
    close(tensors["lm_head.weight"][16], table(b, "lm_head.weight")[16])


@pytest.mark.parametrize(("tie", "heads"), [("keep", True), ("force", False), ("break", True)])
def test_tie(tmp_path, tie, heads):
    a, b = model(tmp_path / "a", WORDS), model(tmp_path / "b", WORDS, seed=1)
    tensors, config, _ = merged(tmp_path, linear(a, b, tie=tie))
    assert ("lm_head.weight" in tensors) is heads
    assert config["tie_word_embeddings"] is not heads


def test_breaking_a_tie_writes_the_head_that_was_implied(tmp_path):
    a = model(tmp_path / "a", WORDS, head=False)
    b = model(tmp_path / "b", WORDS, head=False, seed=1)
    tensors, config, _ = merged(tmp_path, linear(a, b, tie="break"))
    assert torch.equal(tensors["lm_head.weight"], tensors[EMBEDDING])
    assert config["tie_word_embeddings"] is False


def test_a_second_copy_of_a_tied_embedding_is_not_written(tmp_path):
    a, b = model(tmp_path / "a", WORDS), model(tmp_path / "b", WORDS, seed=1)
    for folder in (a, b):
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()
        config = json.loads((folder / "config.json").read_text())
        files = {"tokenizer.json": word_level(WORDS)}
        save(folder, tensors, {**config, "tie_word_embeddings": True}, files=files)
    tensors, config, _ = merged(tmp_path, linear(a, b))
    assert "lm_head.weight" not in tensors
    assert config["tie_word_embeddings"] is True


def test_sizes_in_nested_scopes_of_the_text_model_only(tmp_path):
    config = {
        "text_config": {"vocab_size": 16, "vocab_size_per_layer_input": 12},
        "vision_config": {"vocab_size": 16},
    }
    a = model(tmp_path / "a", WORDS, **config)
    b = model(tmp_path / "b", [*WORDS, "x"], seed=1)
    _, made, _ = merged(tmp_path, linear(a, b, tokenizer_source="union"))
    assert made["vocab_size"] == made["text_config"]["vocab_size"] == 17
    assert made["text_config"]["vocab_size_per_layer_input"] == 12
    assert made["vision_config"]["vocab_size"] == 16


def test_special_ids_follow_their_tokens(tmp_path):
    stops = {"eos_token_id": [2, 4], "bos_token_id": 1, "pad_token_id": None}
    a = model(tmp_path / "a", WORDS, eos_token_id=2, bos_token_id=1)
    b = model(
        tmp_path / "b",
        ["</s>", "<unk>", "<s>", "w1"],
        seed=1,
        eos_token_id=0,
        bos_token_id=2,
        files={"generation_config.json": json.dumps({"eos_token_id": [0, 3], "top_k": 5})},
    )
    (a / "generation_config.json").write_text(json.dumps(stops))
    _, config, out = merged(tmp_path, linear(a, b, tokenizer_source=str(b)))
    assert (config["eos_token_id"], config["bos_token_id"]) == (0, 2)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [0, 3], "top_k": 5}


def test_generation_config_survives_a_union(tmp_path):
    stops = {"eos_token_id": [2, 4], "bos_token_id": 1}
    a = model(tmp_path / "a", WORDS, files={"generation_config.json": json.dumps(stops)})
    b = model(tmp_path / "b", ["x"], seed=1)
    _, _, out = merged(tmp_path, linear(a, b, tokenizer_source="union"))
    assert json.loads((out / "generation_config.json").read_text()) == stops


# --- same bytes --------------------------------------------------------------------------------


def test_threads_and_memory_do_not_change_a_byte(tmp_path):
    a = model(tmp_path / "a", WORDS, rows=48)
    b = model(tmp_path / "b", ["<unk>", *(f"v{i}" for i in range(60))], seed=1)
    recipe = linear(a, b, tokenizer={"source": "union", "missing": "mean"})
    results = []
    for i, threads in enumerate((1, 3)):
        mergeloom.merge(recipe, tmp_path / f"out{i}", threads=threads)
        folder = tmp_path / f"out{i}"
        results.append([(folder / n).read_bytes() for n in ("model.safetensors", "tokenizer.json")])
    assert results[0] == results[1]


# --- what is wrong is told ---------------------------------------------------------------------


def test_every_mistake_of_the_tokens_is_told_at_once(tmp_path):
    a, b = model(tmp_path / "a", WORDS), model(tmp_path / "b", WORDS, seed=1)
    tokens = {
        "w99": {"source": str(a)},
        "x": {"source": {"kind": "model_token", "model": str(b), "token": "w1111"}},
        "y": {"source": {"kind": "model_token", "model": str(b), "token_id": 16}},
    }
    with pytest.raises(MergeloomError) as caught:
        mergeloom.plan(linear(a, b, tokenizer={"source": "base", "tokens": tokens}))
    told = [f"{p.where}: {p.message}. {p.hint}" for p in caught.value.problems]
    assert told[0].startswith(f"tokenizer.tokens.w99.source: {a} has no token 'w99'")
    assert "Similar tokens there" in told[0]
    assert told[1].startswith(f"tokenizer.tokens.x.source: {b} has no token 'w1111'")
    assert "has no row 16: its embedding has rows 0 to 15" in told[2]
    assert len(told) == 3

"""Rows of exceptions: what a user's --arch-file may say, and what is said of a wrong one."""

from __future__ import annotations

import pytest
from shapes import BLOCK, MODELS, H, V, layers

from mergeloom.architecture import understand
from mergeloom.architecture.modules import module_names, module_tensors
from mergeloom.architecture.rows import built_in_rows, check_rows, read_rows
from mergeloom.errors import CheckpointError

# No rule finds the parts of this one: a table and a head with names of their own.
SHAPES = {
    "core.lookup": (V, H),
    **layers("core.steps", 3, BLOCK),
    "core.readout": (V, H),
    "core.readout_offset": (V,),
    "eye.w": (H, 4),
}
CONFIG = {"model_type": "odd", "steps": 3, "vocab_size": V}


@pytest.fixture
def rows_of(tmp_path):
    def read(text):
        path = tmp_path / "arch.yml"
        path.write_text(text)
        return read_rows(path)

    return read


def test_a_row_states_what_the_rules_cannot_find(rows_of):
    (row,) = rows_of(
        "model_type: odd\nstacks: {core.steps: steps}\nembeddings: core.lookup\n"
        "heads: [core.readout]\nvocabulary: {core.readout_offset: 0}\nmodules: {vision: eye}\n"
    )
    layout = understand(SHAPES, CONFIG, (row,))
    assert (layout.main.prefix, layout.main.count_key) == ("core.steps", ("steps",))
    assert layout.embeddings == ("core.lookup",)
    assert layout.heads == ("core.readout",)
    assert layout.vocabulary == {"core.lookup": 0, "core.readout": 0, "core.readout_offset": 0}
    assert "vision" in module_names(layout)
    assert module_tensors(layout, "vision") == ("eye.w",)
    check_rows((row,), [layout])
    other = understand(SHAPES, {**CONFIG, "model_type": "other"}, (row,))
    assert other.embeddings != ("core.lookup",)


def test_the_built_in_rows_can_be_read():
    assert all(row.model_types for row in built_in_rows())


@pytest.mark.parametrize(("text", "said"), [
    ("stacs: {}", ["stacs (line 1): unknown key; did you mean stacks?"]),
    ("- model_type: a\n  heads: 3", ["[0].heads (line 2): a name or a list of names is wanted"]),
    ("stacks: {a: 3}\nvocabulary: {b: 2}",
     ["stacks.a (line 1): the config key", "vocabulary.b (line 2): the axis of the tokens"]),
    ("order: free", ["order (line 1): the only word here is fixed"]),
    ("just words", ["a row is a mapping"]),
    ("", ["holds no row"]),
    ("a: [", ["arch.yml"]),
])  # fmt: skip
def test_every_mistake_in_a_file_is_told_with_its_line(text, said, rows_of):
    with pytest.raises(CheckpointError) as error:
        rows_of(text)
    assert len(error.value.problems) == len(said)
    for problem, words in zip(error.value.problems, said, strict=True):
        assert words in str(problem)


def test_names_that_no_model_has_are_told(rows_of):
    rows = rows_of("embeddings: [model.embed_token.weight]\nstacks: {model.layer: n}\n"
                   "modules: {a: [model.norm]}")  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        check_rows(rows, [understand(*MODELS["llama"])])
    told = str(error.value)
    assert "did you mean model.embed_tokens.weight?" in told
    assert "model.layer." in told
    assert "config.json has no n" in told
    with pytest.raises(CheckpointError, match="no model is a odd; found None"):
        check_rows(rows_of("model_type: odd"), [understand(*MODELS["llama"])])

"""Model references as texts and as mappings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.recipe import parse_reference
from mergeloom.types import ModelReference

TEXTS = {
    "org/A": ModelReference("org/A"),
    " org/A/ ": ModelReference("org/A"),
    "/": ModelReference("/"),
    "org/A@v1": ModelReference("org/A", "v1"),
    "org/A@v1+org/L@v2": ModelReference("org/A", "v1", "org/L", "v2"),
    "org/A + ../L/": ModelReference("org/A", lora="../L"),
    "G:\\9B\\base": ModelReference("G:\\9B\\base"),
    "G:\\9B\\base\\": ModelReference("G:\\9B\\base"),
    "C:\\": ModelReference("C:\\"),
    "D:/My Models/B": ModelReference("D:/My Models/B"),
    "models--org--A/snapshots/0a1b": ModelReference("models--org--A/snapshots/0a1b"),
}
MAPPINGS = [
    ({"path": "a+b@c"}, ModelReference("a+b@c")),
    ({"path": "A", "revision": "v1"}, ModelReference("A", "v1")),
    ({"model": "A@v1+L"}, ModelReference("A", "v1", "L")),
    ({"model": {"path": "a@b", "revision": "v"}}, ModelReference("a@b", "v")),
    ({"model": "A", "lora": "L@v2"}, ModelReference("A", None, "L", "v2")),
    (
        {"model": "A", "lora": {"path": "L+1", "revision": "r"}, "override_architecture": "X"},
        ModelReference("A", None, "L+1", "r", "X"),
    ),
    ({"model": "A", "lora": None, "override_architecture": None}, ModelReference("A")),
]
MISTAKES = [
    ("", "a model is wanted, and the text is empty"),
    ("a+b+c", "'a+b+c' holds more than one '+'. '+' separates a LoRA; write {model: {path: ...}}"),
    ("a@", "'a@' has nothing on one side of '@'. '@' separates a revision; write "
           "{model: {path: ..., revision: ...}}"),
    (["a"], "a model is a text or a mapping, not a list"),
    ({"model": "A", "path": "B"},
     "a model written as a mapping has one of the keys 'model' and 'path'"),
    ({}, "a model written as a mapping has one of the keys 'model' and 'path'"),
    ({"model": "A", "revision": "v"},
     "'revision' stands beside 'path': write {model: {path: ..., revision: ...}}"),
    ({"model": "a+b", "lora": "L"},
     "'a+b' holds a '+'. '+' separates a LoRA; write {model: {path: ...}}"),
    ({"model": {"revision": "v"}}, "a model written as a mapping needs the key 'path'"),
    ({"model": "A", "lora": {"path": "L", "rev": 1}},
     "unknown key 'rev' in a model reference, did you mean revision?"),
    ({"path": "A", "revision": 12}, "12 is not text; put it in quotes if it is a revision"),
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text):
    assert parse_reference(text) == TEXTS[text]


@pytest.mark.parametrize(("mapping", "expected"), MAPPINGS)
def test_mappings(mapping, expected):
    assert parse_reference(mapping) == expected


@pytest.mark.parametrize(("value", "message"), MISTAKES)
def test_mistakes(value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_reference(value)
    assert str(caught.value) == message


def test_an_existing_path_is_never_split(tmp_path, monkeypatch):
    odd = tmp_path / "a+b+c@d@e"
    odd.mkdir()
    assert parse_reference(f"{odd}/") == ModelReference(str(odd))
    assert parse_reference({"model": str(odd)}) == ModelReference(str(odd))
    adapter = tmp_path / "me@work"
    adapter.mkdir()
    assert parse_reference(f"org/A+{adapter}") == ModelReference("org/A", lora=str(adapter))
    monkeypatch.chdir(tmp_path)
    assert parse_reference("a+b+c@d@e") == ModelReference("a+b+c@d@e")


PART = st.text("abcXYZ019._- /\\:ä", min_size=1, max_size=12).map(
    lambda text: "m" + text.strip().rstrip("/\\") + "x"
)
REVISION = st.none() | st.text("abc019/.", min_size=1, max_size=8)


@given(PART, REVISION, st.none() | PART, REVISION)
def test_the_text_of_a_reference_reads_back(path, revision, lora, lora_revision):
    reference = ModelReference(path, revision, lora, lora_revision if lora else None)
    assert parse_reference(str(reference)) == reference

"""The finished folder: everything that belongs in it, nothing else, and nothing half done."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from models import content, llama, llama_config, save
from safetensors import safe_open

import mergeloom
from mergeloom import Options, OutputError
from mergeloom.output import write

FILES = {
    "tokenizer.json": '{"model": {"vocab": {"a": 0}}}',
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "{{ x }}",
    "generation_config.json": '{"eos_token_id": 2}',
    "preprocessor_config.json": "{}",
    "deep/er/notes.txt": "kept",
    "README.md": "---\nlicense: apache-2.0\n---\n# Mine\n",
}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs with space"
    save(folder / "A", llama(2, 0), llama_config(2), files=FILES)
    save(folder / "B", llama(2, 1), llama_config(2),
         files={"README.md": FILES["README.md"], "tokenizer.json": FILES["tokenizer.json"],
                "only_in_b.txt": "b"})  # fmt: skip
    return folder


def recipe(folder: Path, **top: object) -> str:
    models = [{"model": str(folder / n), "parameters": {"weight": 1}} for n in "AB"]
    return yaml.safe_dump({"merge_method": "linear", "models": models, **top})


def test_everything_of_the_donor_comes_along(pair, tmp_path):
    text = recipe(pair)
    mergeloom.merge(text, tmp_path / "out")
    got = content(tmp_path / "out")
    assert set(got) == {*FILES, "config.json", "model.safetensors", "mergekit_config.yml"}
    for name in set(FILES) - {"README.md"}:
        assert got[name].decode() == FILES[name], name
    assert got["mergekit_config.yml"].decode() == text
    assert json.loads(got["config.json"]) == llama_config(2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inputs with space", "out"]


def test_copying_the_tokenizer_can_be_left_out(pair, tmp_path):
    mergeloom.merge(recipe(pair), tmp_path / "out", options=Options(copy_tokenizer=False))
    left = set(content(tmp_path / "out"))
    assert not left & {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {"generation_config.json", "deep/er/notes.txt"} <= left


def test_no_card(pair, tmp_path):
    mergeloom.merge(recipe(pair), tmp_path / "out", card=False)
    assert not {"README.md", "mergekit_config.yml"} & set(content(tmp_path / "out"))


def test_no_card_is_left_by_a_run_with_one_that_was_killed_at_its_end(pair, tmp_path, monkeypatch):
    def killed(partial: Path, out: Path) -> None:
        assert (partial / "README.md").is_file()
        raise KeyboardInterrupt

    with monkeypatch.context() as then:
        then.setattr(write, "move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            mergeloom.merge(recipe(pair), tmp_path / "out")
    assert mergeloom.merge(recipe(pair), tmp_path / "out", card=False).resumed
    assert not {"README.md", "mergekit_config.yml"} & set(content(tmp_path / "out"))


def front_matter(out: Path) -> dict:
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    assert f"# {out.name}\n" in body
    return yaml.safe_load(front)


@pytest.mark.parametrize(("a", "b", "licence"), [
    ("license: mit", "license: mit", "mit"), ("license: mit", "license: other", None),
    ("license: mit", "x: y", None), ("x: y", "x: y", None), ("license: mit", "broken: [", None),
    ("license: mit", "- a list", None), ("license: [mit]", "license: [mit]", None),
    ("license: other\nlicense_name: x", "license: other\nlicense_name: y", None),
    ("license: other\nlicense_name: x", "license: other\nlicense_name: x", "other"),
])  # fmt: skip
def test_the_card_is_valid_and_states_a_licence_only_when_all_agree(a, b, licence, pair, tmp_path):
    for name, front in zip("AB", (a, b), strict=True):
        (pair / name / "README.md").write_text(f"---\n{front}\n---\nText\n")
    mergeloom.merge(recipe(pair), tmp_path / "out")
    front = front_matter(tmp_path / "out")
    assert front.get("license") == licence
    assert front.get("license_name") == ("x" if licence == "other" else None)
    assert {"merge", "mergekit"} <= set(front["tags"])
    assert front["library_name"] == "transformers"
    assert "base_model" not in front  # local folders have no name on the hub


def test_a_template_with_code_in_it_does_not_end_the_recipe_in_the_card(pair, tmp_path):
    talk = "{% for m in messages %}\n```\n{{ m.content }}{{ m.role }}\n```\n{% endfor %}"
    text = yaml.safe_dump({**yaml.safe_load(recipe(pair)), "chat_template": talk})
    mergeloom.merge(text, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    shown = card.split("````yaml\n")[1].split("\n````\n")[0]
    assert yaml.safe_load(shown)["chat_template"] == talk


@pytest.mark.parametrize("base", [False, True])
def test_nothing_of_this_machine_leaves_in_the_card_or_the_weights(base, pair, tmp_path):
    top = {"base_model": str(pair / "A")} if base else {}
    mergeloom.merge(recipe(pair, **top), tmp_path / "out", options=Options(out_shard_size=2000))
    files = [*(tmp_path / "out").glob("*.safetensors")]
    assert len(files) > 1
    for path in files:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt"
        told = json.loads(metadata["mergeloom"])
        assert [i["name"] for i in told["inputs"]] == ["A", "B"]
        assert all(len(i["fingerprint"]) == 64 for i in told["inputs"])
        assert "merge_method: linear" in told["recipe"]
        assert str(tmp_path) not in json.dumps(metadata)
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "inputs with space" not in card


def test_models_that_only_lend_something_leave_no_path_either(pair, tmp_path):
    from tokenizers import Tokenizer, models

    talk = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
    for name in "ABCD":
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        save(pair / name, llama(2, 1), llama_config(2),
             files={"tokenizer.json": tokenizer.to_str(), "chat_template.jinja": talk})  # fmt: skip
    lent = {"source": "union", "tokens": {"b": {"source": str(pair / "C")}}}
    text = recipe(pair, tokenizer=lent, chat_template={"model": str(pair / "D")}, note=str(pair))
    mergeloom.merge(text, tmp_path / "out", options=Options(lenient=True))
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        told = file.metadata()["mergeloom"]
    assert str(tmp_path) not in told
    assert yaml.safe_load(json.loads(told)["recipe"])["chat_template"] == {"model": "D"}


@pytest.mark.parametrize("spelt", ["{}", "'{}'", '"{}"', ">-\n      {}", "!!str {}"])
def test_no_spelling_of_a_path_leaves_this_machine(spelt, tmp_path):
    """YAML folds, escapes and doubles: what counts is what it means."""
    folder = tmp_path / "it's \u00fc here"
    save(folder / "A", llama(1), llama_config(1))
    path = str(folder / "A")
    if spelt.startswith("'"):
        path = path.replace("'", "''")
    if spelt.startswith('"'):
        path = path.replace("\u00fc", "\\xfc").replace(" ", "\\\n   \\ ")
    mergeloom.merge(
        f"# from {folder}/A\nbase_model: {spelt.format(path)}\nmerge_method: passthrough\n"
        f"models:\n- model: {spelt.format(path)}\n",
        tmp_path / "out",
    )
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["mergeloom"])["recipe"]
    assert yaml.safe_load(told)["base_model"] == "A"
    assert str(tmp_path) not in told
    assert "here" not in told
    assert "here" not in (tmp_path / "out" / "README.md").read_text()


def test_the_fingerprint_tells_other_weights(pair, tmp_path):
    def fingerprints(out: str) -> list[str]:
        mergeloom.merge(recipe(pair), tmp_path / out)
        with safe_open(tmp_path / out / "model.safetensors", "pt") as file:
            return [i["fingerprint"] for i in json.loads(file.metadata()["mergeloom"])["inputs"]]

    first = fingerprints("one")
    assert fingerprints("two") == first
    save(pair / "B", llama(2, 2), llama_config(2))
    third = fingerprints("three")
    assert third[0] == first[0]
    assert third[1] != first[1]


def test_a_folder_with_something_in_it_is_refused_unless_asked(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "stale.safetensors").write_text("old")
    (out / "old").mkdir()
    with pytest.raises(OutputError, match="not empty"):
        mergeloom.merge(recipe(pair), out)
    assert content(out) == {"stale.safetensors": b"old"}
    mergeloom.merge(recipe(pair), out, overwrite=True)
    assert not {"stale.safetensors", "old"} & {p.name for p in out.iterdir()}
    mergeloom.merge(recipe(pair), out, overwrite=True, options=Options(out_shard_size=3000))
    assert not (out / "model.safetensors").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inputs with space", "out"]


def test_overwriting_fails_without_touching_the_old_folder(pair, tmp_path):
    mergeloom.merge(recipe(pair), tmp_path / "out")
    before = content(tmp_path / "out")
    save(pair / "B", {n: t * float("nan") for n, t in llama(2, 1).items()}, llama_config(2))
    with pytest.raises(mergeloom.MergeError):
        mergeloom.merge(recipe(pair), tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == before


def test_targets_that_cannot_be(pair, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        mergeloom.merge(recipe(pair), tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        mergeloom.merge(recipe(pair), tmp_path / "file" / "below")
    with pytest.raises(OutputError):
        mergeloom.merge(recipe(pair), pair / "A", overwrite=True)
    with pytest.raises(OutputError):
        mergeloom.merge(recipe(pair), pair, overwrite=True)
    assert (pair / "A" / "model.safetensors").exists()
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(OutputError, match="cannot be"):
        mergeloom.merge(recipe(pair), tmp_path / ("x" * 300))


def test_targets_of_many_spellings(pair, tmp_path, monkeypatch):
    mergeloom.merge(recipe(pair), tmp_path / "new" / "deeper" / "out")
    wanted = content(tmp_path / "new" / "deeper" / "out")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    for out in ("empty", "relative/", "dots/../other", "ümläut 名", "link"):
        mergeloom.merge(recipe(pair), out)
        got = content(Path(out).resolve())
        assert set(got) == set(wanted)
        assert got["model.safetensors"] == wanted["model.safetensors"]
    assert (tmp_path / "link").is_symlink()


def test_a_disk_that_is_full_is_told_before_anything_is_written(pair, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(OutputError, match="more than the disk has free"):
        mergeloom.merge(recipe(pair), tmp_path / "out")
    weights = mergeloom.plan(recipe(pair)).bytes_out + (16 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, weights))
    with pytest.raises(OutputError, match="more than the disk has free"):  # for the other files
        mergeloom.merge(recipe(pair), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inputs with space"]


@pytest.mark.parametrize("step", ["_texts", "_side_files"])
def test_a_disk_that_fills_up_in_the_end_is_no_defect(step, pair, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as then:
        then.setattr(write, step, full)
        with pytest.raises(OutputError, match="No space left on device"):
            mergeloom.merge(recipe(pair), tmp_path / "out")
    assert mergeloom.merge(recipe(pair), tmp_path / "out").resumed


def test_a_bare_weight_file_gives_a_folder_without_a_config(tmp_path):
    save(tmp_path / "A", {"w": torch.ones(3)}, None)
    weights = tmp_path / "A" / "model.safetensors"
    mergeloom.merge({"merge_method": "passthrough", "models": [{"model": str(weights)}]},
                    tmp_path / "out")  # fmt: skip
    assert set(content(tmp_path / "out")) == {"model.safetensors", "README.md",
                                              "mergekit_config.yml"}  # fmt: skip


def test_a_side_file_cannot_be_taken_for_the_journal(pair, tmp_path):
    (pair / "A" / "journal.jsonl").write_text("mine\n")
    mergeloom.merge(recipe(pair), tmp_path / "out")
    assert (tmp_path / "out" / "journal.jsonl").read_text() == "mine\n"
    assert not list((tmp_path / "out").glob(".*"))


def test_lenient_is_also_meant_for_the_recipe_that_is_given_as_text(pair, tmp_path):
    text = recipe(pair, dype="float32")
    with pytest.raises(mergeloom.RecipeError, match="did you mean dtype"):
        mergeloom.plan(text)
    lenient = Options(lenient=True)
    assert mergeloom.plan(text, lenient).jobs
    assert mergeloom.merge(text, tmp_path / "out", options=lenient).out.is_dir()


def test_comments_do_not_tell_the_folders_of_this_machine(pair, tmp_path):
    text = (
        "# from /home/me/secret/A, C:\\Users\\me\\B and ~/deep/C; see https://hf.co/org/A\n"
        + recipe(pair, note="'# /not/a/comment'")
        + "# last: /home/me/secret/Z"
    )
    plan = mergeloom.merge(text, tmp_path / "out", options=Options(lenient=True)).plan
    card = (tmp_path / "out" / "README.md").read_text()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["mergeloom"])["recipe"]
    for shown in (card, told):
        assert "# from A, B and C; see https://hf.co/org/A\n" in shown
        assert "# /not/a/comment" in shown
        assert "# last: Z" in shown
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == text == plan.recipe.text


def test_warnings_about_the_recipe_reach_python_too(pair):
    plan = mergeloom.plan(recipe(pair, parameters={"densty": 1}))
    assert any("densty" in str(warning) for warning in plan.warnings)
    assert plan.recipe.warnings == plan.warnings[: len(plan.recipe.warnings)]


def test_the_card_of_a_sentence_transformers_folder_names_its_library(pair, tmp_path):
    (pair / "A" / "modules.json").write_text('[{"path": ""}]')
    mergeloom.merge(recipe(pair), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: sentence-transformers\n" in card


def test_a_side_file_that_leads_out_of_its_folder_is_told(pair, tmp_path):
    (tmp_path / "secret").write_text("s")
    (pair / "A" / "notes.json").symlink_to(tmp_path / "secret")
    (pair / "A" / "same.json").symlink_to("tokenizer_config.json")
    told = [str(w) for w in mergeloom.plan(recipe(pair)).warnings]
    assert len(told) == 1
    assert "links to files outside of it" in told[0]
    assert f"notes.json ({tmp_path / 'secret'})" in told[0]
    cached = tmp_path / "models--o--A" / "snapshots" / "abc"
    cached.parent.mkdir(parents=True)
    (pair / "A").rename(cached)
    (cached / "notes.json").unlink()
    (cached.parents[1] / "blobs").mkdir()
    (cached / "tokenizer_config.json").rename(cached.parents[1] / "blobs" / "1")
    (cached / "tokenizer_config.json").symlink_to("../../blobs/1")
    top = yaml.safe_load(recipe(pair))
    top["models"][0]["model"] = str(cached)
    assert mergeloom.plan(top).warnings == ()


def test_the_recipe_keeps_its_line_ends(pair, tmp_path):
    text = recipe(pair).replace("\n", "\r\n")
    mergeloom.merge(text, tmp_path / "out")
    assert (tmp_path / "out" / "mergekit_config.yml").read_bytes() == text.encode()


def test_an_empty_state_dict_is_no_model():
    top = {"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"weight": 1}}
    with pytest.raises(mergeloom.CheckpointError, match="the state dict of a holds no tensors"):
        mergeloom.merge_state_dicts(top, {"a": {}})

"""Half of a small merge's time is importing torch: which merges do without it?"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from models import assert_same_files, llama, llama_config, save

import mergeloom

RECIPES = {
    "stacked layers": "merge_method: passthrough\n"
    "slices:\n"
    "- {{sources: [{{model: {0}/A, layer_range: [0, 2]}}]}}\n"
    "- {{sources: [{{model: {0}/B, layer_range: [1, 3]}}]}}\n",
}
CODE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise RuntimeError("torch is imported")

sys.meta_path.insert(0, Refuse())
from mergeloom.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models in two shards each, with a tensor of several blocks."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("AB"):
        tensors = llama(3, seed, torch.bfloat16)
        tensors |= {f"model.layers.{i}.mlp.wide": torch.randn(600, 1024) for i in range(3)}
        save(folder / name, tensors, llama_config(3), shards=2)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_these_merges_never_import_torch(name, folder, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(RECIPES[name].format(folder))
    without = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(
        [*without, "merge", str(recipe), str(tmp_path / "without" / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mergeloom.merge(recipe, tmp_path / "with" / "out")
    assert_same_files(tmp_path / "without" / "out", tmp_path / "with" / "out")

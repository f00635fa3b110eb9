"""A stage imports only the stages to its left, and nothing heavy before a merge runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mergeloom

SOURCE = Path(mergeloom.__file__).parent
STAGES = """_version errors types json_text methods recipe checkpoint architecture vocabulary
planning inspection verify engine output api demo cli __main__""".split()


def stage(module: str) -> str | None:
    """``mergeloom.planning.build`` → ``planning``; None outside the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mergeloom" and len(parts) > 1 else None


def imported(path: Path) -> list[str]:
    """Every module a file imports, at the top, in functions and for type checking alike."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += names if node.module == "mergeloom" else [str(node.module)]
    return found


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def own_stage(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_stage_has_its_place():
    assert {own_stage(p) for p in files()} <= {*STAGES, "__init__"}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_arrow_to_the_right(path):
    own = own_stage(path)
    if own == "__init__":
        return
    for module in imported(path):
        theirs = stage(module)
        # The version and the public names of the package are no stage.
        if theirs in (None, own) or theirs.startswith("__"):
            continue
        assert STAGES.index(theirs) <= STAGES.index(own), f"{path} imports {module}"


@pytest.mark.parametrize("stages", ["errors", "types", "methods", "recipe", "architecture",
                                    "vocabulary", "planning"])  # fmt: skip
def test_early_stages_import_torch_at_most_inside_a_function(stages):
    for path in files():
        if own_stage(path) != stages:
            continue
        tree = ast.parse(path.read_text())
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"torch", "transformers"} & {n.partition(".")[0] for n in names}, path


HEAVY = """torch numpy transformers tokenizers huggingface_hub safetensors pydantic jinja2 rich
pandas scipy""".split()
COMMANDS = {
    "import": None,
    "--help": ["--help"],
    "merge --help": ["merge", "--help"],
    "methods": ["methods"],
    "check": ["check", "{recipe}"],
    "inspect": ["inspect", "{recipe.parent}/A"],
    "plan": ["plan", "{recipe}", "--show-parameters"],
    "a mistake": ["merge", "{missing}", "out"],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from models import llama, llama_config, save

    folder = tmp_path_factory.mktemp("models")
    for name in "AB":
        save(folder / name, llama(2), llama_config(2))
    path = folder / "recipe.yml"
    path.write_text(
        f"merge_method: slerp\nbase_model: {folder / 'A'}\nparameters: {{t: [0, 1]}}\n"
        f"models: [{{model: {folder / 'A'}}}, {{model: {folder / 'B'}}}]\n"
    )
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_heavy_is_imported(name, recipe):
    arguments = COMMANDS[name]
    run = "pass"
    if arguments is not None:
        filled = [a.format(recipe=recipe, missing=recipe.parent / "no.yml") for a in arguments]
        run = f"sys.argv[1:] = {filled!r}; run_command(mergeloom)"
    code = f"""
import sys
import mergeloom
from mergeloom.cli.errors import run_command
from mergeloom.cli.main import mergeloom
try:
    {run}
except SystemExit as end:
    print("code", end.code, file=sys.stderr)
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    if name == "a mistake":
        assert "code 2" in done.stderr

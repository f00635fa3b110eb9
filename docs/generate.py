"""Write docs/methods.md from the declarations of the methods and docs/commands.md from --help.

python docs/generate.py           writes both files
python docs/generate.py --check   exits with 1 when one of them is not up to date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from mergeloom.cli.main import mergeloom
from mergeloom.cli.peers import mergekit_command, mergekitty_command
from mergeloom.methods import METHODS, Method, Parameter

DOCS = Path(__file__).resolve().parent
WIDTH = 96
NOTICE = "<!-- Written by docs/generate.py: make docs -->"


def methods_page() -> str:
    """docs/methods.md: an overview and a section for every method."""
    return "\n".join([*_overview(), *(line for m in METHODS.values() for line in _method(m))])


def _overview() -> Iterator[str]:
    yield from (NOTICE, "", "# Methods", "")
    yield (
        "Every method below is a formula for one tensor at a time. `mergeloom explain METHOD` "
        "prints the same in a terminal. How parameters are written, for all layers or only some, "
        "is described in [recipe.md](recipe.md#parameters)."
    )
    yield from ("", "| method | what it does | base model | models |", "|---|---|---|---|")
    for method in METHODS.values():
        first = method.summary.partition(". ")[0].rstrip(".")
        yield f"| [{method.name}](#{method.name}) | {first} | {method.base} | {_count(method)} |"
    yield ""
    yield (
        "*models* counts the inputs besides the base. All arithmetic is float32 with one rounding "
        "at the end; sums over a whole tensor are float64."
    )


def _count(method: Method) -> str:
    low, high = method.models
    if high is None:
        return f"{low} or more"
    return f"{low}" if low == high else f"{low} to {high}"


def _method(method: Method) -> Iterator[str]:
    yield from ("", f"## {method.name}", "", method.summary, "")
    yield f"**When:** {method.use}"
    yield ""
    words = (inspect.getdoc(method.formula) or "").replace("``", "`")
    yield f"**Formula:** {' '.join(words.split())}"
    if method.parameters:
        yield from ("", "| parameter | type | given | default | meaning |", "|---|---|---|---|---|")
        yield from (_parameter(p) for p in method.parameters)
    if method.reference:
        yield from ("", f"**Source:** {method.reference}")
    yield from ("", "```yaml", method.example.rstrip(), "```")


def _parameter(parameter: Parameter) -> str:
    kind = f"{' / '.join(parameter.choices) or parameter.kind}{_range(parameter)}"
    given = "for each model" if parameter.per_model else "once"
    default = "required" if parameter.required else _default(parameter.default)
    return f"| `{parameter.name}` | {kind} | {given} | {default} | {parameter.help} |"


def _range(parameter: Parameter) -> str:
    low, high = parameter.low, parameter.high
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    if low is not None:
        return f", ≥ {low:g}"
    return "" if high is None else f", ≤ {high:g}"


def _default(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def commands_page() -> str:
    """docs/commands.md: the help of every command."""
    lines = [NOTICE, "", "# Commands", ""]
    lines.append(
        "Exit code 0: done. 1: a defect of mergeloom. 2: a mistake in the recipe, the models, the "
        "output folder or the command line, explained on stderr. 130: interrupted; the same "
        "command continues."
    )
    root = _context(mergeloom, "mergeloom", None)
    lines += _help("mergeloom", root)
    for name in mergeloom.list_commands(root):
        command = mergeloom.get_command(root, name)
        if command is not None:
            lines += _help(f"mergeloom {name}", _context(command, name, root))
    lines += ["", "# Scripts of other tools", ""]
    lines.append(
        "These accept the command lines that people have in notebooks. A flag that has no meaning "
        "here is named on stderr and ignored."
    )
    for name, command in (
        ("mergekit-yaml", mergekit_command),
        ("mergekitty-yaml", mergekitty_command),
    ):
        lines += _help(name, _context(command, name, None))
    return "\n".join(lines)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _help(name: str, context: click.Context) -> list[str]:
    text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
    return ["", f"## {name}", "", "```text", text, "```"]


PAGES: dict[str, Callable[[], str]] = {"methods.md": methods_page, "commands.md": commands_page}


def stale() -> list[str]:
    """The pages whose file is not what would be written now."""
    return [
        name
        for name, page in PAGES.items()
        if not (DOCS / name).exists()
        or (DOCS / name).read_text(encoding="utf-8") != page().rstrip() + "\n"
    ]


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    found = stale()
    if "--check" in arguments:
        if found:
            print(f"not up to date: {', '.join(found)}; run make docs", file=sys.stderr)
        return bool(found)
    for name in found:
        (DOCS / name).write_text(PAGES[name]().rstrip() + "\n", encoding="utf-8")
        print(f"wrote {DOCS / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

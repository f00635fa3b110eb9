"""Write the pages that the code knows: methods, commands, and what was measured.

python docs/generate.py           writes methods.md, methods/*.md, quality.md and commands.md
python docs/generate.py --check   exits with 1 when one of them is not up to date

Words, formulas, parameters and recipes of the methods come from their declarations, numbers from
the files that the benchmarks write to measured/.
"""

from __future__ import annotations

import sys

import click
from measurements import DOCS, measured
from method_pages import NOTICE, method_page, methods_page, quality_page

from mergeloom.cli.main import mergeloom
from mergeloom.cli.peers import mergekit_command, mergekitty_command
from mergeloom.methods import METHODS

WIDTH = 96


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


def pages() -> dict[str, str]:
    """Every generated page, by its path below docs/."""
    made = {"methods.md": methods_page(), "commands.md": commands_page()}
    made |= {f"methods/{name}.md": method_page(method) for name, method in METHODS.items()}
    if measured("quality"):
        made["quality.md"] = quality_page()
    return {name: f"{text.rstrip()}\n" for name, text in made.items()}


def stale() -> dict[str, str]:
    """The pages whose file is not what would be written now."""
    return {
        name: text
        for name, text in pages().items()
        if not (DOCS / name).exists() or (DOCS / name).read_text(encoding="utf-8") != text
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    found = stale()
    if "--check" in arguments:
        if found:
            print(f"not up to date: {', '.join(found)}; run make docs", file=sys.stderr)
        return bool(found)
    for name, text in found.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"wrote {DOCS / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Chat templates: found in the inputs, chosen, checked, and written so that all files agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mergeloom.errors import CheckpointError, Problem, RecipeError, nearest
from mergeloom.json_text import json_kind, parse_json
from mergeloom.recipe.fields import BUILT_IN_TEMPLATES, CHAT_TEMPLATES
from mergeloom.types import Checkpoint, ModelReference
from mergeloom.vocabulary.template_check import check_template

TEMPLATE_HOLDERS = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
"""The JSON files that may hold a template under the key ``chat_template``, in order of use."""
_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Template:
    """The chat template of an output.

    Args:
        text: the Jinja text.
        origin: where it comes from, as messages and cards say it: ``built-in chatml``, the label
            of a model, or ``the recipe``.
        model: index of the input it was taken from, or None.
    """

    text: str
    origin: str
    model: int | None = None


def resolve_template(
    setting: str | ModelReference,
    inputs: Sequence[tuple[str, Checkpoint]],
    *,
    line: int | None = None,
) -> Template | None:
    """The template that a recipe's ``chat_template`` asks for, checked.

    Args:
        setting: ``auto``, the name of a built-in, a Jinja text (at least 20 characters with a
            ``{``), or the model whose template is taken.
        inputs: label and checkpoint of every input, the base first, then in the order of the
            recipe, with the model of ``setting`` if that is not an input.
        line: of the setting in the recipe.

    Returns:
        For ``auto`` the most frequent template, and of several the first in the order of the
        inputs; None if no input has one.

    Raises:
        RecipeError: the setting means nothing, or the template does not work.
        CheckpointError: a file of an input cannot be read.
    """
    try:
        found = _chosen(setting, inputs)
        if found is not None:
            given = found.origin == "the recipe"
            check_template(
                found.text, "the template" if given else f"the template of {found.origin}"
            )
    except RecipeError as error:
        problems = [Problem(p.where, p.message, p.hint, line) for p in error.problems]
        raise RecipeError(problems) from None
    return found


def _chosen(
    setting: str | ModelReference, inputs: Sequence[tuple[str, Checkpoint]]
) -> Template | None:
    if isinstance(setting, ModelReference):
        return _of_model(str(setting), inputs)
    name = setting.strip()
    if name == "auto":
        return _most_frequent(inputs)
    if name in BUILT_IN_TEMPLATES:
        return Template(_built_in(name), f"built-in {name}")
    if len(setting) >= 20 and "{" in setting:
        return Template(setting, "the recipe")
    message = f"{setting!r} is no Jinja text and not one of {', '.join(CHAT_TEMPLATES)}"
    near = nearest(name, CHAT_TEMPLATES)
    raise RecipeError(Problem("chat_template", f"{message}, {near}" if near else message))


def _built_in(name: str) -> str:
    return (files(__package__) / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _of_model(label: str, inputs: Sequence[tuple[str, Checkpoint]]) -> Template:
    for i, (name, checkpoint) in enumerate(inputs):
        if name == label:
            text = read_template(checkpoint)
            if text is not None:
                return Template(text, label, i)
            hint = f"The built-in ones are {', '.join(BUILT_IN_TEMPLATES)}."
            raise RecipeError(Problem("chat_template", f"{label} has no chat template", hint))
    message = f"{label} is not a model of this merge"
    near = nearest(label, [name for name, _ in inputs])
    raise RecipeError(Problem("chat_template", f"{message}, {near}" if near else message))


def _most_frequent(inputs: Sequence[tuple[str, Checkpoint]]) -> Template | None:
    texts = [read_template(checkpoint) for _, checkpoint in inputs]
    counts = Counter(text.strip() for text in texts if text is not None)
    most = max(counts.values(), default=0)
    for i, text in enumerate(texts):
        if text is not None and counts[text.strip()] == most:
            return Template(text, inputs[i][0], i)
    return None


# --- files ---


def read_template(checkpoint: Checkpoint) -> str | None:
    """The chat template of a model, or None if it has none or a blank one.

    It is ``chat_template.jinja``, else the key ``chat_template`` of tokenizer_config.json, else
    that of a processor's files, as transformers looks for them. Where the key holds several
    templates by name, it is the one called ``default``.

    Raises:
        CheckpointError: a file is not UTF-8, not JSON or not of that form.
    """
    content = checkpoint.side_file(_FILE)
    if content is not None:
        text = _decoded(content, str(checkpoint.side_folder / _FILE))
        return text if text.strip() else None
    for name in TEMPLATE_HOLDERS:
        content = checkpoint.side_file(name)
        if content is None:
            continue
        where = str(checkpoint.side_folder / name)
        found = _default(_document(content, where).get("chat_template"), where)
        if found is not None and found.strip():
            return found
    return None


def template_files(template: Template, donor_files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that give an output its chat template.

    Args:
        template: what to write.
        donor_files: the files by name that the output takes from its donor; only the
            ``TEMPLATE_HOLDERS`` are looked at.

    Returns:
        ``chat_template.jinja``, which today's transformers reads; and those of the holders that
        hold a template, with this one in its place, for programs that read only them.
    """
    written = {_FILE: template.text.encode("utf-8")}
    for name in TEMPLATE_HOLDERS:
        content = donor_files.get(name)
        if content is None:
            continue
        document = _document(content, name)
        if "chat_template" in document:
            document["chat_template"] = template.text
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            written[name] = text.encode("utf-8")
    return written


def _default(found: Any, where: str) -> str | None:
    """The template in a key: a text, a list of {name, template}, or a mapping by name."""
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    text = found.get("default") if isinstance(found, dict) else found
    if text is None or isinstance(text, str):
        return text
    raise CheckpointError(
        Problem(where, f"chat_template is a text or named texts, not a {type(text).__name__}")
    )


def _document(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = parse_json(content)
    except ValueError as error:
        raise CheckpointError(Problem(where, f"is not valid JSON: {error}")) from None
    if not isinstance(document, dict):
        message = f"holds a JSON {json_kind(document)}, not an object"
        raise CheckpointError(Problem(where, message))
    return document


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text (byte {error.start:,})"
        raise CheckpointError(Problem(where, message)) from None

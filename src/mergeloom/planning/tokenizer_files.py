"""The output's tokenizer files, special-token ids and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeloom.architecture.config import with_vocabulary
from mergeloom.errors import MergeloomError, Problems
from mergeloom.json_text import parse_json
from mergeloom.planning.models import Models
from mergeloom.planning.plan import Options
from mergeloom.planning.vocabularies import Decided, vocabulary_rows
from mergeloom.types import Checkpoint, ModelReference, Recipe
from mergeloom.vocabulary.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from mergeloom.vocabulary.chat_template import Template

GENERATION = "generation_config.json"
STOPS = "eos_token_id"


@dataclass(frozen=True)
class MadeFiles:
    """Files that the merge writes instead of copying.

    Args:
        source: the model whose other tokenizer files are copied.
        texts: name → content.
        stale: names of the source's files that describe another vocabulary and are left out.
    """

    source: ModelReference
    texts: Mapping[str, bytes] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()


def make_files(
    recipe: Recipe, models: Models, options: Options, decided: Decided, problems: Problems
) -> MadeFiles:
    """What the output's folder says of tokens besides the weights and config.json."""
    texts: dict[str, bytes] = {}
    stale: frozenset[str] = frozenset()
    source = models[decided.source].checkpoint
    if decided.output and options.copy_tokenizer:
        from mergeloom.vocabulary.files import tokenizer_files

        texts, stale = tokenizer_files(decided.output, decided.among)
    template = _template(recipe, models, problems)
    if template:
        from mergeloom.vocabulary.chat_template import template_files

        present = {**_present(source), **texts}
        texts |= template_files(template, present)
        _warn_of_missing_tokens(recipe, template, decided, models, problems)
    if generation := _generation(recipe, models, decided, template, problems):
        texts[GENERATION] = generation
    return MadeFiles(decided.source, texts, stale)


def with_output_vocabulary(
    config: Mapping[str, Any], models: Models, decided: Decided, problems: Problems
) -> dict[str, Any]:
    """The donor's config.json with the sizes and special-token ids of the output's vocabulary."""
    common, donor = decided.common, models.donor
    result = dict(config)
    if common is None:
        return result
    sizes = {vocabulary_rows(donor): common.rows}
    for name in donor.layout.shapes:
        if common.covers(name):
            rows = common.rows_of(name)
            sizes.setdefault(donor.layout.shapes[name][common.axis(name)], rows)
    if tokenizer := decided.tokenizers.get(models.donor_reference):
        sizes.setdefault(len(tokenizer.ids), common.rows)
        sizes.setdefault(max(tokenizer.ids.values(), default=0) + 1, common.rows)
    result = with_vocabulary(result, sizes)
    return _translated(result, "config.json", models.donor_reference, decided, problems)


def _translated(
    document: Mapping[str, Any],
    name: str,
    owner: ModelReference,
    decided: Decided,
    problems: Problems,
) -> dict[str, Any]:
    """A file's special-token ids as the output's, when its own tokens have moved."""
    theirs = decided.tokenizers.get(owner)
    if decided.output is None or theirs is None:
        return dict(document)
    ids = decided.output.ids
    if all(ids.get(token) == number for token, number in theirs.ids.items()):
        return dict(document)
    from mergeloom.vocabulary.special import translated_ids

    result, dropped = translated_ids(document, theirs, ids)
    for warning in dropped:
        problems.warn(name, warning)
    return result


def _template(recipe: Recipe, models: Models, problems: Problems) -> Template | None:
    setting = recipe.chat_template
    if not setting:
        return None
    from mergeloom.vocabulary.chat_template import resolve_template

    inputs = [(str(r), models[r].checkpoint) for r in _with_templates(recipe)]
    line = recipe.line("chat_template")
    try:
        found = resolve_template(setting, inputs, line=line)
    except MergeloomError as error:
        problems.errors += error.problems
        return None
    if found is None:
        problems.warn("chat_template", "no model of this merge has one; none is written", line=line)
    return found


def _with_templates(recipe: Recipe) -> tuple[ModelReference, ...]:
    """The models whose chat templates can be taken, as ``Template.model`` counts them."""
    named = (recipe.chat_template,) if isinstance(recipe.chat_template, ModelReference) else ()
    return tuple(dict.fromkeys((*recipe.models(), *named)))


def _warn_of_missing_tokens(
    recipe: Recipe, template: Template, decided: Decided, models: Models, problems: Problems
) -> None:
    """A mark of the template that is several tokens means nothing to the model."""
    ids = decided.output.ids if decided.output else None
    if ids is None:
        tokenizer = read_tokenizer(models[decided.source].checkpoint)
        ids = tokenizer.ids if tokenizer else {}
    from mergeloom.vocabulary.template_check import needed_tokens

    absent = [token for token in needed_tokens(template.text) if token not in ids]
    if absent:
        problems.warn(
            "chat_template",
            f"the template ({template.origin}) writes {', '.join(map(repr, absent))}, which the "
            "output's vocabulary does not have as one token",
            "Add them under tokenizer: tokens:, or choose another template.",
            recipe.line("chat_template"),
        )


# --- generation_config.json --------------------------------------------------------------------


def _generation(
    recipe: Recipe,
    models: Models,
    decided: Decided,
    template: Template | None,
    problems: Problems,
) -> bytes | None:
    """The token source's generation_config.json, else the donor's, in the output's ids.

    A template of another model ends turns with that model's stop tokens; they are added. None
    when the file can be copied as it is.
    """
    owner = decided.source
    content = models[owner].checkpoint.side_file(GENERATION)
    if content is None:
        owner = models.donor_reference
        content = models[owner].checkpoint.side_file(GENERATION)
    if content is None:
        return None
    before = _object(content)
    if before is None:
        return content if owner != models.donor_reference else None
    document = _translated(before, GENERATION, owner, decided, problems)
    if template and template.model is not None:
        lender = models[_with_templates(recipe)[template.model]]
        _add_stops(document, lender.checkpoint, decided)
    if document == before:
        return content if owner != models.donor_reference else None
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _add_stops(document: dict[str, Any], lender: Checkpoint, decided: Decided) -> None:
    """Append the stop tokens of the model that lends the template, by their text."""
    theirs = read_tokenizer(lender)
    if theirs is None or not (decided.output or decided.tokenizers):
        return
    ids = decided.output.ids if decided.output else decided.tokenizers[decided.source].ids
    content = lender.side_file(GENERATION)
    stated = (_object(content) or {}) if content else {}
    wanted = _listed(stated.get(STOPS, (lender.config or {}).get(STOPS)))
    texts = {number: token for token, number in theirs.ids.items()}
    found = [ids[texts[n]] for n in wanted if n in texts and texts[n] in ids]
    ours = _listed(document.get(STOPS))
    if new := [n for n in dict.fromkeys(found) if n not in ours]:
        document[STOPS] = [*ours, *new]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _object(content: bytes) -> dict[str, Any] | None:
    """A JSON object; None for a file that is something else and is left as it is."""
    try:
        document = parse_json(content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _present(source: Checkpoint) -> dict[str, bytes]:
    from mergeloom.vocabulary.chat_template import TEMPLATE_HOLDERS

    found = {name: source.side_file(name) for name in TEMPLATE_HOLDERS}
    return {name: content for name, content in found.items() if content is not None}

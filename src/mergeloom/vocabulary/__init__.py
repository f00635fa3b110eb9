"""What the inputs' tokenizers say: token text → id, read from tokenizer.json; chat templates."""

from mergeloom.vocabulary.chat_template import (
    BUILT_IN,
    TEMPLATE_HOLDERS,
    Template,
    read_template,
    resolve_template,
    template_files,
)
from mergeloom.vocabulary.compare import Vocabulary, read_vocabulary
from mergeloom.vocabulary.template_check import check_template, needed_tokens

__all__ = [
    "BUILT_IN",
    "TEMPLATE_HOLDERS",
    "Template",
    "Vocabulary",
    "check_template",
    "needed_tokens",
    "read_template",
    "read_vocabulary",
    "resolve_template",
    "template_files",
]

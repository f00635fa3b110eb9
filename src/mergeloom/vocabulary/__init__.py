"""What the inputs' tokenizers say; the vocabulary and the chat template of the output."""

from mergeloom.vocabulary.chat_template import (
    BUILT_IN,
    TEMPLATE_HOLDERS,
    Template,
    read_template,
    resolve_template,
    template_files,
)
from mergeloom.vocabulary.files import tokenizer_files
from mergeloom.vocabulary.special import translated_ids
from mergeloom.vocabulary.template_check import check_template, needed_tokens
from mergeloom.vocabulary.tokenizer import AddedToken, Tokenizer, read_tokenizer
from mergeloom.vocabulary.union import Conflict, OutputVocabulary, output_vocabulary

__all__ = [
    "BUILT_IN",
    "TEMPLATE_HOLDERS",
    "AddedToken",
    "Conflict",
    "OutputVocabulary",
    "Template",
    "Tokenizer",
    "check_template",
    "needed_tokens",
    "output_vocabulary",
    "read_template",
    "read_tokenizer",
    "resolve_template",
    "template_files",
    "tokenizer_files",
    "translated_ids",
]

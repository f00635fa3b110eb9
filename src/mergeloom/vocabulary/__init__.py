"""What the inputs' tokenizers say: token text → id, read from tokenizer.json alone."""

from mergeloom.vocabulary.compare import Vocabulary, read_vocabulary

__all__ = ["Vocabulary", "read_vocabulary"]

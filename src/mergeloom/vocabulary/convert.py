"""Tokenizers that come without a tokenizer.json, converted by transformers when it is there."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeloom.errors import CheckpointError, Problem
from mergeloom.json_text import parse_json
from mergeloom.vocabulary.tokenizer import is_vocabulary

EXTRA = "Install it with: pip install 'mergeloom[transformers]'"


def converted(
    label: str, files: Mapping[str, bytes]
) -> tuple[dict[str, Any] | None, dict[str, int]]:
    """The tokenizer.json that transformers makes of other files, or else the ids of its tokens.

    Args:
        label: how messages name the model.
        files: the tokenizer's files and config.json by name.

    Returns:
        The parsed tokenizer.json and {}, or None and token → id for a tokenizer that is Python
        code of transformers.

    Raises:
        CheckpointError: transformers is missing, or cannot read the files.
    """
    names = ", ".join(name for name in files if is_vocabulary(name))
    if importlib.util.find_spec("transformers") is None:
        raise CheckpointError(
            Problem(
                label,
                f"has no tokenizer.json, and transformers is needed to read {names}",
                EXTRA,
            )
        )
    with tempfile.TemporaryDirectory(prefix="mergeloom-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(_without_code(name, content))
        try:
            tokenizer = _load(Path(folder))
        except Exception as error:  # noqa: BLE001 - whatever a stranger's file makes it raise
            said = (str(error).strip().splitlines() or [""])[0].replace(folder, label)
            raise CheckpointError(
                Problem(
                    label,
                    f"transformers cannot read its tokenizer ({names}): "
                    f"{type(error).__name__}: {said[:300]}",
                    "Save it once with AutoTokenizer.from_pretrained(...).save_pretrained(...), "
                    "which writes a tokenizer.json, and put that beside the model.",
                )
            ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.loads(backend.to_str()), {}
    return None, {str(token): int(i) for token, i in tokenizer.get_vocab().items()}


def _load(folder: Path) -> Any:
    """The tokenizer of a folder that holds no code; nothing is fetched."""
    import transformers

    loader: Any = transformers.AutoTokenizer
    if not _names_class(folder):  # as in the first years of transformers
        only_words = (folder / "vocab.txt").exists()
        loader = transformers.BertTokenizer if only_words else transformers.PreTrainedTokenizerFast
    return loader.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def _names_class(folder: Path) -> bool:
    """Whether a configuration says what kind of model or tokenizer it is."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        try:
            found = parse_json(path.read_bytes()) if path.exists() else {}
        except ValueError:
            return True  # transformers will say what is wrong with it
        if isinstance(found, dict) and found.keys() & {"model_type", "tokenizer_class"}:
            return True
    return False


def _without_code(name: str, content: bytes) -> bytes:
    """A JSON file without the key that names Python files to run."""
    if name not in ("config.json", "tokenizer_config.json"):
        return content
    try:
        parsed = parse_json(content)
    except ValueError:
        return content  # transformers will say what is wrong with it
    if isinstance(parsed, dict):
        parsed.pop("auto_map", None)
        return json.dumps(parsed).encode()
    return content

"""Tokenizer files from a GGUF file's metadata, made by transformers."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

from mergeloom.checkpoint.report import Report

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_OF_THE_LOADER = ("is_local", "local_files_only", "backend")


def tokenizer_files(path: Path, shown: str, report: Report) -> dict[str, bytes]:
    """Name → content; empty, with a warning, where it cannot be made.

    Args:
        path: the file, whose header has been checked.
        shown: how messages call it.
        report: receives the warning.
    """
    if importlib.util.find_spec("transformers") is None:
        report.warn(
            f"the tokenizer of {shown} is made by transformers, which is not installed: the "
            "checkpoint has none",
            "Install mergeloom[transformers,gguf]",
        )
        return {}
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        try:
            made = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
            made.save_pretrained(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the weights can be merged
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            report.warn(f"transformers can make no tokenizer from {shown}: {why[:200]}")
            return {}
        found = {
            file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name in FILES
        }
    return {name: _plain(name, found[name]) for name in FILES if name in found}


def _plain(name: str, content: bytes) -> bytes:
    """A file without the traces of how it was loaded, for any version of transformers."""
    if name != "tokenizer_config.json":
        return content
    config = {k: v for k, v in json.loads(content).items() if k not in _OF_THE_LOADER}
    if config.get("tokenizer_class") == "TokenizersBackend":  # what version 5 calls the same class
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()

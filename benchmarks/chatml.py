"""A base without ChatML tokens takes them from a second model: does the result chat and stop?

    python benchmarks/chatml.py

The base is SmolLM2-135M after a few steps on other text, with the tokens of ChatML taken out of its
tokenizer (their rows stay, as rows of reserved tokens) and its stop token changed. The second model
is SmolLM2-135M-Instruct. Their union gets the marks back at new ids, with the rows and the chat
template of the second model. Run `benchmarks/real_models.py smollm2 finetune` before.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a file: make `benchmarks` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paths import REAL

MARKS = {"<|im_start|>": "<|reserved_1|>", "<|im_end|>": "<|reserved_2|>"}
TEXTS = ("<|im_start|>user\nHello<|im_end|>\n", "def f(x):\n    return x", "naïve café 日本語 🙂")


def without_marks(source: Path, target: Path) -> Path:
    """A copy of the model whose tokenizer knows other names for the tokens of ChatML."""
    shutil.copytree(source, target)
    (target / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (target / name).read_text(encoding="utf-8")
        for mark, other in MARKS.items():
            text = text.replace(mark, other)
        (target / name).write_text(text, encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((target / name).read_text())
        settings |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        (target / name).write_text(json.dumps(settings))
    return target


def main() -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import mergeloom

    chat = REAL / "smollm2-135m-instruct"
    with tempfile.TemporaryDirectory() as folder:
        base = without_marks(REAL / "smollm2-135m-stdlib", Path(folder) / "base")
        out = Path(folder) / "out"
        recipe = {
            "merge_method": "linear",
            "base_model": str(base),
            "models": [
                {"model": str(base), "parameters": {"weight": 0.3}},
                {"model": str(chat), "parameters": {"weight": 0.7}},
            ],
            "tokenizer": {"source": "union"},
            "chat_template": {"model": str(chat)},
            "dtype": "bfloat16",
        }
        mergeloom.merge(recipe, out)
        ours = Tokenizer.from_file(str(out / "tokenizer.json"))
        loaded = AutoTokenizer.from_pretrained(out)
        for text in TEXTS:
            ids = loaded(text, add_special_tokens=False).input_ids
            assert ids == ours.encode(text, add_special_tokens=False).ids, text
            assert loaded.decode(ids, skip_special_tokens=False) == text, text
        marks = {mark: loaded.convert_tokens_to_ids(mark) for mark in MARKS}
        model, report = AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, output_loading_info=True
        )
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys")), report
        talk = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = loaded.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        size = prompt["input_ids"].shape[1]
        made = model.generate(**prompt, max_new_tokens=80, do_sample=False)[0][size:]
        print(f"rows {model.get_input_embeddings().num_embeddings}, marks {marks}")
        print(f"stop tokens {model.generation_config.eos_token_id}, {len(made)} tokens generated")
        print(repr(loaded.decode(made)))
        assert int(made[-1]) == marks["<|im_end|>"], "it did not stop"


if __name__ == "__main__":
    main()

"""Classes of transformers that each needed a rule, understood and stacked as the benchmark does.

`benchmarks/architectures.py` asks the same of every class.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.architectures import measure

CASES = {
    ("cpmant", "CpmAntForCausalLM"): "ok",  # more rows than vocab_size
    ("encoder-decoder", "EncoderDecoderModel"): "ok",  # a table at both ends
    ("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM"): "ok",  # more in the last layer
    ("hrm_text", "HrmTextForCausalLM"): "refused",  # two stacks, one count
    ("ibert", "IBertForMaskedLM"): "ok",  # a copy of the table in integers
    ("jamba", "JambaForCausalLM"): "ok",  # kinds by position, in their period
    ("led", "LEDForConditionalGeneration"): "ok",  # a list of the encoder's beside both counts
    ("luke", "LukeForMaskedLM"): "ok",  # says it is tied, and stores a head
    ("neomme", "NeoMMEForMaskedLM"): "ok",  # a second table
    ("pix2struct", "Pix2StructForConditionalGeneration"): "ok",  # equal counts
    ("speecht5", "SpeechT5ForSpeechToText"): "ok",  # a family called like a sound
    ("t5gemma", "T5GemmaForConditionalGeneration"): "ok",  # tied to the decoder's table
    ("ultrabert", "UltrabertForMaskedLM"): "ok",  # a head called cls
    ("xlm", "XLMWithLMHeadModel"): "refused",  # layers spread over lists
    ("zamba2", "Zamba2ForCausalLM"): "refused",  # layers that share weights
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_class_is_understood(kind, name):
    found = measure(kind, name)
    assert "error" not in found
    assert found["stacks_right"], found["stacks"]
    assert found["embedding_right"], found["embedding"]
    assert found["head_right"], found["head"]
    assert found["restack"]["outcome"] == CASES[kind, name], found["restack"]

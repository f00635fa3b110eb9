"""Special-token ids of the config files, translated through the tokens' text."""

from __future__ import annotations

from made_tokenizers import added, document, read

from mergeloom.vocabulary.special import translated_ids

MARKS = [added("<s>", 2), added("</s>", 3), added("<img>", 4), added("<gone>", 5)]
THEIRS = read("A", document({"a": 0, "b": 1}, MARKS))
IDS = {"a": 10, "b": 11, "<s>": 12, "</s>": 13, "<img>": 14}


def test_every_scope_and_form_is_translated():
    config = {
        "model_type": "llava",
        "vocab_size": 6,
        "bos_token_id": 2,
        "eos_token_id": [3, 0],
        "pad_token_id": None,
        "image_token_index": 4,
        "sep_token_id": -1,
        "num_beams": 2,
        "text_config": {"vocab_size": 6, "eos_token_id": 3, "decoder_start_token_id": 0},
        "vision_config": {"bos_token_id": 2, "image_size": 3},
        "per_layer": {"vocab_size": 99, "pad_token_id": 2},
        "suppress_tokens": [0, 1],
        "begin_suppress_tokens": [],
        "bad_words_ids": [[0, 1], [2]],
        "forced_decoder_ids": [[1, 0], [2, None], [3, 1]],
        "lang_to_id": {"a": 0},
    }
    made, warnings = translated_ids(config, THEIRS, IDS)
    assert warnings == ()
    assert made == config | {
        "bos_token_id": 12,
        "eos_token_id": [13, 10],
        "image_token_index": 14,
        "text_config": {"vocab_size": 6, "eos_token_id": 13, "decoder_start_token_id": 10},
        "suppress_tokens": [10, 11],
        "bad_words_ids": [[10, 11], [12]],
        "forced_decoder_ids": [[1, 10], [2, None], [3, 11]],
        "lang_to_id": {"a": 10},
    }
    assert list(made) == list(config)


def test_what_has_no_counterpart_is_left_out_and_told():
    config = {
        "pad_token_id": 5,
        "eos_token_id": [3, 5],
        "bad_words_ids": [[0, 5], [1]],
        "forced_decoder_ids": [[1, 5], [2, 0]],
        "text_config": {"bos_token_id": 77},
    }
    made, warnings = translated_ids(config, THEIRS, IDS)
    assert made == {
        "eos_token_id": [13],
        "bad_words_ids": [[11]],
        "forced_decoder_ids": [[2, 10]],
        "text_config": {},
    }
    lacks = "5 is '<gone>', which the output's vocabulary has not; it is left out"
    assert warnings == (
        f"pad_token_id: {lacks}",
        f"eos_token_id: {lacks}",
        f"bad_words_ids: {lacks}",
        f"forced_decoder_ids: {lacks}",
        "text_config.bos_token_id: 77 is no token of A; it is left out",
    )

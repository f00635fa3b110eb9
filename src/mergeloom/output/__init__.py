"""The finished directory: weights, config, tokenizer, card and provenance."""

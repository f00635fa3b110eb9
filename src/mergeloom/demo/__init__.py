"""Three small real language models and the recipes that merge them, for ``mergeloom demo``."""

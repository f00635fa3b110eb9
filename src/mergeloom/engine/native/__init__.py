"""Runs jobs in tiles: small programs in C that compute a block at a time, without torch."""

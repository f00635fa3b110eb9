"""Streams the jobs of a plan block by block. Imported only when a merge really runs."""

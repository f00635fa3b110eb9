"""Benchmarks and real-model checks for mergeloom; see README.md beside this file."""

"""Runs jobs in torch: on GPUs, in float64, and what tiles cannot do."""

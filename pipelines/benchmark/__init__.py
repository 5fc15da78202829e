"""Benchmark of the engine against the authors' way, in one run on one machine."""

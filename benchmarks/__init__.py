"""Measure time and memory: run `python -m benchmarks` from the root of the repository. The package does not ship it."""

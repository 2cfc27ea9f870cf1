"""Measure time and memory: `python -m benchmarks` in the root of the repository. Not part of the installed package."""

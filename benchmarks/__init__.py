"""What things cost: `python -m benchmarks`, from the root of the repository; no part of the package."""

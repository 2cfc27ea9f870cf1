"""The exact answer."""

"""The bounds."""

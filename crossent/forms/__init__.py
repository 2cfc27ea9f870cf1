"""The textbook: cross-entropy written out by hand."""

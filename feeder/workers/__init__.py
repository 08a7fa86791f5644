"""Processes that make batches, and how batches come over without a copy."""

"""Damage: found, explained, and mended as far as it can be."""

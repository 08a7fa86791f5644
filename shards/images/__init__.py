"""Encoded images: what their headers say, and the rules by which a build changes them."""

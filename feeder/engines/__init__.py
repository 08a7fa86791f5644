"""Engines turn encoded bytes, a box and a flip into pixels."""

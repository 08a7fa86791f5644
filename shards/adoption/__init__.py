"""Data that others wrote, taken where they lie: manifest and indexes, nothing else."""

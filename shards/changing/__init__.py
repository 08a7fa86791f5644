"""Changes of a dataset: each is a new generation of its manifest."""

"""Fields of all samples as columns, and expressions over them."""

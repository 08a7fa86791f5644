"""What others write: their tar archives and MDS sets, and index files for them."""

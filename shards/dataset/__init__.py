"""What a dataset says of itself: its manifest, its shards, its files."""

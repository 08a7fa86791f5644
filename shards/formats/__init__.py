"""The formats of shards on disk, and the index that is the same for all of them."""

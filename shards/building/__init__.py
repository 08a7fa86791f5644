"""Building datasets: planned, written by worker processes, gone on with after an interruption, committed."""

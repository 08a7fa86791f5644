"""Reading datasets: sample ids in, rows and checked bytes out."""

"""Measurements: whole processes and CPU time, peers in the same run, results with versions and hardware.

``python -m benchmarks`` runs them all, ``python -m benchmarks order`` one; ``--tiny`` shows in seconds that they work.
"""

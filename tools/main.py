"""The ``feeder`` command: finds the subcommand, and turns errors into one sentence and an exit code."""

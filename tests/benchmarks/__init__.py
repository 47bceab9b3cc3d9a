"""Side by side with what a user would write: `python -m tests.benchmarks.NAME --json` prints one object."""

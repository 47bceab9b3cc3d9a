"""The search: Ray Tune runs the trials, Optuna proposes them, ASHA stops them, and the ledger says what happened.

One path, top to bottom: `sweep` prepares data and teachers, `tuning` runs one Tuner for all arms (`searcher` asks,
`scheduler` decides at rungs, `runner` trains), `confirm` re-evaluates, retrains and reads the test split.
"""

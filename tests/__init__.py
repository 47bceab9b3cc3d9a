"""Tests of distune: unit, end-to-end, chaos; `benchmarks/` runs side by side with what a user would write."""

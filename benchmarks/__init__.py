"""Benchmarks, run from the repository's folder as `python -m benchmarks.NAME`."""

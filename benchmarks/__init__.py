"""Benchmarks, and the results that the documentation quotes."""

"""Benchmarks: `make bench`. Ratios are taken in one run, because machines are noisy."""

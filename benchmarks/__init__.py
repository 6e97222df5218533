"""Benchmarks: `make bench` runs them all and prints the page docs/benchmarks.md."""

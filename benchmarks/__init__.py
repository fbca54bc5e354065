"""Measured claims; each file is run by hand and its results stand in docs/benchmarks.md. None is a test."""

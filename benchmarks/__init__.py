"""Benchmarks: kernels, lengths of one bundle, and other runtimes on the same weights."""

"""Benchmarks: one module per claim; each writes its result to results/<module>.json."""

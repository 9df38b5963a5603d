"""The contenders of :mod:`benchmarks.router`: local models, and rules for when they may answer."""

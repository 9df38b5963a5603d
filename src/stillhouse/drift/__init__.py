"""Drift: profile windows, measure distances, accumulate evidence, and decide what to do about it."""

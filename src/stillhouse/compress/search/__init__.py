"""The search for a good recipe: candidates, their measurements, the Pareto front, and the greedy search."""

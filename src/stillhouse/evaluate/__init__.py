"""Evaluation: scorecards of models, the gate for challengers, and the admission of teachers."""

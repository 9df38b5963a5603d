"""Distillation as it was published, independent of ours."""

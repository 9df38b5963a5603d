"""Prefect tasks: one engine call each."""

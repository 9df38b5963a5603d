"""Prefect tasks; each task makes one call to the engine."""

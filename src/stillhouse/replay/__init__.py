"""Replay: any policy on a stretch of history. Models are trained once a step and scored on all later steps."""

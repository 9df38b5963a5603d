"""Scorecards, and the gate that asks for proof."""

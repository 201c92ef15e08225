"""Checks before anything is queued: whether a layout divides a model, and whether it fits in memory. Pure functions."""

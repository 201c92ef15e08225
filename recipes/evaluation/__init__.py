"""Scores of a model on the evaluation problems, with their uncertainty: metrics, the bootstrap, and `scores.json`."""

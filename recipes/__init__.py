"""Recipes: what the stages of a run are, how they depend on each other, and what does their work."""

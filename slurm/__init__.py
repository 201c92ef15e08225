"""Slurm: sites, plans, submission, watching and explaining."""

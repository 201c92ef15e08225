"""The data path: problems, traces, grading, filters, tokens. Knows nothing of recipes or of Slurm."""

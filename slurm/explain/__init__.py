"""Why a job failed: reads the logs of all its ranks, Slurm's own words and events, and names the root cause.

`reasonforge explain` and the code that heals runs call `engine.explain`; what it knows is the table `rules.yaml`.
"""

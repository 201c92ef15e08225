"""Each claim of speed or quality as a command that measures it."""

"""What rows share: equal and nearly equal rows, and runs of words that are also in an evaluation problem."""

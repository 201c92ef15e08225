"""The tags between which a model thinks. Grading, filters and tokenization read them."""

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

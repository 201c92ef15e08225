"""Curation: traces are verified, annotated, filtered, deduplicated, decontaminated and selected, all by `curate`."""

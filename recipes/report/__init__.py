"""The report of a run, for people who would rather look than read: one HTML page, with JSON and Markdown beside it.

The report stage calls `content.gather` and writes what `page`, `markdown` and `content.as_json` make of it.
"""

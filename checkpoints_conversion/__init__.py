"""Checkpoints between Hugging Face and Megatron/NeMo, by byte ranges: exact, in constant memory, as fast as a copy.

`cli.convert` is the command; `importing`, `exporting`, `inspection`, `verification` and `merging` are the library.
"""

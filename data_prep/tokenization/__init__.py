"""Texts to token ids: `dataset` for a whole file, `chat` for a prompt and its response, `encoder` for plain texts."""

"""Files of tokens as training frameworks read them: a format a module."""

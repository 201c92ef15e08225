"""The ground floor of reasonforge: artifacts, configuration, errors, progress, and the command line over them."""

__version__ = "0.1.0"

"""Engines: adapters that turn a typed configuration into what a training framework takes, and run it."""

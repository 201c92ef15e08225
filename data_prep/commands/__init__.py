"""The commands of `reasonforge data`, by theme; `data_prep.cli` puts them into one group."""

"""The settings of a run: definitions, conversion and the values of ``auto``."""

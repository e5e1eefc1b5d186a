"""The settings of a run: groups and definitions, conversion from and to a run config, and values of ``auto``."""

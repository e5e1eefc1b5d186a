"""The settings of a run: their definitions, their conversion from and to a run config, and the values of ``auto``."""

"""The folder of a run, and its costs, metrics and origin."""

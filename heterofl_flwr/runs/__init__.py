"""The folder of a run: settings, history, checkpoints, models, and where they come from."""

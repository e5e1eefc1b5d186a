"""What a run leaves in its folder: history, checkpoints, models, and where they come from."""

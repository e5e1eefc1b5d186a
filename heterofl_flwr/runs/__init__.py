"""Folder of a run with settings, history, checkpoints and models; costs and metrics of a run; origin of results."""

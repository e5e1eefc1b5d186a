"""Files of a run: settings, history, checkpoints and models in its folder; costs, metrics and origin of results."""

"""Engines: the ways to run the training steps of one client or of several."""

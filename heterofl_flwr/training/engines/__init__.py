"""Engines: ways to train the clients of a process."""

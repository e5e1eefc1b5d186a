"""Helpers for all packages: errors, files, tensors by name and options."""

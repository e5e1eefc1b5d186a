"""Strategies for Flower's Message API."""

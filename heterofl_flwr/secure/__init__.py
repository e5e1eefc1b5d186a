"""Secure aggregation of slices of unequal size: the protocol as pure functions of bytes and arrays, without Flower.

``roster`` describes the clients of a round and their slices; ``client`` and ``server`` are the two sides of a round.
"""

"""Secure aggregation of slices of unequal size: the protocol, as pure functions of bytes and arrays, without Flower.

``roster`` lists the clients of a round with their slices, ``client`` and ``server`` are the two sides of a round.
"""

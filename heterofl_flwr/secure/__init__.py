"""Secure aggregation of slices of unequal size: the protocol, as pure functions of bytes and arrays, without Flower.

``roster`` says who takes part and which slices they hold, ``client`` and ``server`` are the two sides of a round.
"""

"""Secure aggregation of slices of unequal size: the protocol, without Flower."""

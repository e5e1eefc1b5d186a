"""Shamir's secret sharing of 32 bytes, over the smallest prime field that holds them.

Flower's own shares secrets in pieces of 16 bytes over GF(2^128), in pure Python bit by bit, which takes seconds for a
hundred clients; a prime field takes milliseconds, with Python's own integers.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Return a share for each point, which are different numbers over 0; any ``threshold`` of them give the secret."""
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = []
    for point in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """Return the secret of shares by their points; None if they are too few, or cannot be of one secret."""
    if len(shares) < threshold:
        return None
    points = tuple(sorted(shares))[:threshold]
    weighed = zip(_weights(points), (int.from_bytes(shares[point], "big") for point in points), strict=True)
    value = sum(weight * share for weight, share in weighed) % PRIME
    return value.to_bytes(SECRET_BYTES, "big") if value < 2 ** (8 * SECRET_BYTES) else None


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> list[int]:
    """Return Lagrange's weights at 0."""
    others = [[other for other in points if other != point] for point in points]
    return [
        prod(some) % PRIME * pow(prod(other - point for other in some), -1, PRIME) % PRIME
        for point, some in zip(points, others, strict=True)
    ]

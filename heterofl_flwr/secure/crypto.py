"""Keys, sealed texts, streams of masks and shares of secrets: X25519, HKDF, ChaCha20-Poly1305, AES-256-CTR, Shamir.

Flower's own shares secrets in pieces of 16 bytes over GF(2^128), in Python bit by bit. In a prime field that holds 32
bytes, Python's own integers do it in milliseconds.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from heterofl_flwr.common.errors import ReplyError

Words = NDArray[np.uint32]
"""Masked values: arithmetic modulo 2^32."""

KEY_BYTES, SHARE_BYTES, TAG_BYTES = 32, 33, 16
PRIME = 2**256 + 297
"""The smallest prime above all secrets."""

_BLOCK = 2**16  # words at once, which stay in the processor's cache
_ZEROS = bytes(4 * _BLOCK)


def new_pair() -> tuple[bytes, bytes]:
    """Return a fresh private key and its public key."""
    own = X25519PrivateKey.generate()
    return own.private_bytes_raw(), own.public_key().public_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, *purpose: bytes | str | int) -> bytes:
    """Return the key that two clients share for a purpose; another purpose gives a key that has nothing to do with it.

    The purpose begins with the digest of what both know of the round. So a key is of use in this round and for this
    pair alone, and two clients that were told different things have different keys.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ReplyError("a public key of secure aggregation is not usable: it gives the same secret to all") from error
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=repr(("heterofl secure-sum 1", *purpose)).encode()).derive(secret)


def are_usable(keys: Sequence[bytes]) -> bool:
    """Whether these are the two public keys of a client, with which each other one has a secret of its own."""
    try:
        for key in keys:
            agree(new_pair()[0], key)
    except ReplyError:
        return False
    return len(set(keys)) == len(keys) == 2


def seal(key: bytes, plain: bytes) -> bytes:
    """Return a text encrypted and authenticated with a key that seals nothing else, so that its nonce can be zero."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Return the text; an empty one if it is of another round, sender or receiver, or was changed on the way."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return b""


def digest(*parts: bytes) -> bytes:
    """Return a hash of some parts."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def add_stream(total: Words, key: bytes, sign: int = 1) -> None:
    """Add the stream of a key to words in place, or subtract it; all 256 bits of the key count."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    combine = np.add if sign > 0 else np.subtract
    for start in range(0, len(total), _BLOCK):
        part = total[start : start + _BLOCK]
        combine(part, np.frombuffer(encryptor.update(_ZEROS[: 4 * len(part)]), dtype="<u4"), out=part)


def cut(shares: bytes) -> list[bytes]:
    """Return shares that were joined."""
    return [shares[place : place + SHARE_BYTES] for place in range(0, len(shares), SHARE_BYTES)]


def split(secret: bytes, threshold: int, number: int) -> list[bytes]:
    """Return so many shares of a secret, of which any ``threshold`` give it: a polynomial's values from 1 on."""
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = []
    for point in range(1, number + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of shares by their place, counted from 0; an empty one if they cannot be shares of one."""
    points = tuple(place + 1 for place in sorted(shares))[:threshold]
    weighed = zip(_weights(points), (int.from_bytes(shares[point - 1], "big") for point in points), strict=True)
    value = sum(weight * share for weight, share in weighed) % PRIME
    return value.to_bytes(KEY_BYTES, "big") if value < 2 ** (8 * KEY_BYTES) else b""


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> list[int]:
    """Return Lagrange's weights at 0."""
    others: Sequence[Sequence[int]] = [[other for other in points if other != point] for point in points]
    return [
        prod(some) % PRIME * pow(prod(other - point for other in some), -1, PRIME) % PRIME
        for point, some in zip(points, others, strict=True)
    ]

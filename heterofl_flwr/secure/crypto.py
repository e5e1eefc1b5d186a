"""Keys, encryption, mask streams and secret shares: X25519, HKDF, ChaCha20-Poly1305, AES-256-CTR, Shamir."""

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
"""Masked values; arithmetic is modulo 2^32."""

KEY_BYTES, SHARE_BYTES, TAG_BYTES, HASH_BYTES = 32, 33, 16, 16
PRIME = 2**256 + 297
"""Modulus of the shares: the smallest prime above all secrets."""

_BLOCK = 2**16  # words per call; they fit into the processor's cache
_ZEROS = bytes(4 * _BLOCK)


def new_pair() -> tuple[bytes, bytes]:
    """Return a new private key and its public key."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Return the public key of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, *purpose: bytes | str | int) -> bytes:
    """Return the secret key that two clients share, from the private key of one and the public key of the other.

    ``purpose`` enters the derivation of the key. Callers pass a hash of the roster first, so that keys differ from
    round to round.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ReplyError("a public key of secure aggregation is not usable: it gives the same secret to all") from error
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=repr(("heterofl secure-sum 2", *purpose)).encode()).derive(secret)


def are_usable(keys: Sequence[bytes]) -> bool:
    """Whether ``keys`` are two valid public keys that differ."""
    try:
        for key in keys:
            agree(new_pair()[0], key)
    except ReplyError:
        return False
    return len(set(keys)) == len(keys) == 2


def seal(key: bytes, plain: bytes) -> bytes:
    """Encrypt and authenticate bytes. Use a key only once: the nonce is always zero."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Decrypt bytes from ``seal``; return b"" if the bytes or the key are wrong."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return b""


def digest(*parts: bytes) -> bytes:
    """Return one SHA-256 hash of a sequence of byte strings."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def hash_shares(shares: Sequence[bytes]) -> bytes:
    """Return the truncated hashes of shares, joined."""
    return b"".join(hashlib.sha256(share).digest()[:HASH_BYTES] for share in shares)


def add_stream(total: Words, key: bytes, sign: int = 1) -> None:
    """Add the AES-256 key stream of ``key`` to ``total`` in place; subtract it if ``sign`` is -1."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    combine = np.add if sign > 0 else np.subtract
    for start in range(0, len(total), _BLOCK):
        block = total[start : start + _BLOCK]
        combine(block, np.frombuffer(encryptor.update(_ZEROS[: 4 * len(block)]), dtype="<u4"), out=block)


def cut(text: bytes, size: int = SHARE_BYTES) -> list[bytes]:
    """Split bytes into pieces of ``size`` bytes."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def split(secret: bytes, threshold: int, number: int) -> list[bytes]:
    """Return ``number`` Shamir shares of a secret; any ``threshold`` of them restore it."""
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = []
    for point in range(1, number + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of Shamir shares; b"" if the result exceeds 32 bytes.

    The keys of ``shares`` are positions in the list from ``split``.
    """
    points = tuple(position + 1 for position in sorted(shares))[:threshold]
    value = _interpolate(shares, points, 0)
    return value.to_bytes(KEY_BYTES, "big") if value < 2 ** (8 * KEY_BYTES) else b""


def are_consistent(shares: Mapping[int, bytes], threshold: int) -> bool:
    """Whether all shares lie on one polynomial of a degree below ``threshold``."""
    points = tuple(position + 1 for position in sorted(shares))
    return all(
        _interpolate(shares, points[:threshold], point) == int.from_bytes(shares[point - 1], "big")
        for point in points[threshold:]
    )


def _interpolate(shares: Mapping[int, bytes], points: tuple[int, ...], argument: int) -> int:
    values = (int.from_bytes(shares[point - 1], "big") for point in points)
    return sum(weight * value for weight, value in zip(_weights(points, argument), values, strict=True)) % PRIME


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...], argument: int) -> list[int]:
    """Return the Lagrange weights of ``points`` for interpolation at ``argument``."""
    remaining: Sequence[Sequence[int]] = [[value for value in points if value != point] for point in points]
    return [
        prod(value - argument for value in row) % PRIME * pow(prod(value - point for value in row), -1, PRIME) % PRIME
        for point, row in zip(points, remaining, strict=True)
    ]

"""Keys of a round, what is sealed with them, and streams of masks: X25519, HKDF, ChaCha20-Poly1305, AES-256-CTR."""

import hashlib

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from heterofl_flwr.errors import ReplyError

Words = NDArray[np.uint32]
"""Masked values: arithmetic modulo 2^32."""

KEY_BYTES, TAG_BYTES = 32, 16

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
        raise ReplyError(
            f"a public key of secure aggregation is unusable: {error or 'a point of small order'}"
        ) from error
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=repr(("heterofl secure-sum 1", *purpose)).encode()).derive(secret)


def seal(key: bytes, plain: bytes) -> bytes:
    """Return a text encrypted and authenticated with a key that seals nothing else, so that its nonce can be zero."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Return the text; None if it is of another round, sender or receiver, or was changed on the way."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return None


def digest(*parts: bytes) -> bytes:
    """Return a hash of some parts."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def add_stream(total: Words, key: bytes, sign: int = 1) -> None:
    """Add the stream of a key to words in place, or subtract it; all 256 bits of the key count."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    combine = np.add if sign > 0 else np.subtract
    for start in range(0, len(total), _BLOCK):
        part = total[start : start + _BLOCK]
        words = np.frombuffer(encryptor.update(_ZEROS[: 4 * len(part)]), dtype="<u4")
        combine(part, words, out=part)

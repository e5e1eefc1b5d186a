"""Discrete Gaussian noise (Canonne, Kamath and Steinke, 2020) from a cryptographic generator.

Values are whole numbers with a probability in proportion to ``exp(-value² / 2 DEVIATION²)``. On a grid of whole numbers
this gives away no more than continuous noise does, and no bit of a value depends on how floating point rounds, which is
how noise can be told from data otherwise (Mironov, 2012).

A value is ``±(FINE * coarse + fine)``: ``coarse`` is drawn from a table, ``fine`` evenly, and the two are kept with
probability ``exp(-fine * (fine + 2 * FINE * coarse) / 2 DEVIATION²)``, else drawn anew (Ducas and others, 2013). The
probability of each value is right to a relative 2**-45, apart from an absolute 2**-70 for all values together.
"""

import math
import secrets
from functools import cache

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

_COARSE = 16
_FINE_BITS, _CELL_BITS, _KEEP_BITS = 20, 16, 27
_FINE = 1 << _FINE_BITS

DEVIATION = _COARSE * _FINE
"""Standard deviation of the noise, in steps of the grid."""

_KEEP_SHIFT = (2 * DEVIATION**2).bit_length() - 1 - _KEEP_BITS
_SPLIT = -1
BLOCK = 2**15
"""Values drawn at once, so that they stay in the processor's cache."""


class Keystream:
    """Random bits that nobody can compute who lacks the key: AES-256 in counter mode.

    Parameters
    ----------
    key : bytes | None
        32 bytes, for tests alone. By default the operating system gives a fresh key, which is stored nowhere.
    """

    def __init__(self, key: bytes | None = None) -> None:
        own = secrets.token_bytes(32) if key is None else key
        # Each key makes one stream, so the counter can begin at 0.
        self._encryptor = Cipher(algorithms.AES256(own), modes.CTR(bytes(16))).encryptor()

    def words(self, number: int) -> Words:
        """Return the next words of 64 bits."""
        return np.frombuffer(self._encryptor.update(bytes(8 * number)), dtype="<u8")


@torch.no_grad()
def draw(stream: Keystream, shape: torch.Size) -> Tensor:
    """Return discrete Gaussian noise as whole numbers in double precision, which holds them exactly."""
    noise = np.empty(shape.numel())
    for start in range(0, len(noise), BLOCK):
        part = noise[start : start + BLOCK]
        part[:] = _values(stream, len(part))
    return torch.from_numpy(noise).view(shape)


def _values(stream: Keystream, number: int) -> Integers:
    values, kept = _proposed(stream, number)
    again = np.flatnonzero(~kept)
    if len(again):
        values[again] = _values(stream, len(again))
    return values


def _proposed(stream: Keystream, number: int) -> tuple[Integers, NDArray[np.bool_]]:
    """Return values, and which of them to keep."""
    # From the top: the cell of the table, the sign, ``fine``, and the first bits of the number that decides.
    word = stream.words(number)
    cell = (word >> np.uint64(64 - _CELL_BITS)).view(np.int64)
    negative = ((word >> np.uint64(_FINE_BITS + _KEEP_BITS)) & np.uint64(1)).view(np.int64)
    fine = ((word >> np.uint64(_KEEP_BITS)) & np.uint64(_FINE - 1)).view(np.int64)
    decides = (word & np.uint64(2**_KEEP_BITS - 1)).view(np.int64)
    base = _coarse(stream, cell) << _FINE_BITS
    value = base + fine
    # 1 - exp(-x) is below x, so almost all are kept without a look at the exact probability.
    exponent = fine * (value + base)
    kept = (decides << _KEEP_SHIFT) > exponent
    doubtful = np.flatnonzero(~kept)
    share = (decides[doubtful] + _share(stream, len(doubtful))) / 2**_KEEP_BITS
    kept[doubtful] = share >= -np.expm1(exponent[doubtful] / (-2 * DEVIATION**2))
    kept &= (value > 0) | (negative == 0)  # else 0 would come twice as often
    return (value ^ -negative) + negative, kept


def _coarse(stream: Keystream, cell: Integers) -> Integers:
    """Return the coarse parts that cells of the table stand for."""
    tails, cells = _table()
    coarse = cells[cell]
    split = np.flatnonzero(coarse == _SPLIT)
    share = (cell[split] + _share(stream, len(split))) / 2**_CELL_BITS
    coarse[split] = len(tails) - np.searchsorted(tails, share, side="right")
    return coarse


def _share(stream: Keystream, number: int) -> NDArray[np.float64]:
    """Return even draws from 0 up to 1."""
    return stream.words(number).astype(np.float64) * 2.0**-64


@cache
def _table() -> tuple[NDArray[np.float64], Integers]:
    """Return the probabilities of k or more, from the largest k down to 1, and the coarse part of each cell.

    Cells are even parts of the numbers from 0 to 1; one in which a probability lies is split, and is looked up.
    """
    # Beyond this, what is left of the probability is less than a share can tell from 0.
    weights = [math.exp(-(value**2) / (2 * _COARSE**2)) for value in range(11 * _COARSE)]
    total = math.fsum(weights)
    tails = np.array([math.fsum(weights[value:]) / total for value in range(len(weights) - 1, 0, -1)])
    edges = np.arange(2**_CELL_BITS + 1) / 2**_CELL_BITS
    most = len(tails) - np.searchsorted(tails, edges[:-1], side="right")
    least = len(tails) - np.searchsorted(tails, edges[1:], side="left")
    return tails, np.where(most == least, most, _SPLIT).astype(np.int64)

"""Noise of differential privacy for the counting mean.

If one client can change the sum of an entry by up to C, it can change the mean of m clients by up to C/m. So the noise
of the mean is the noise of the sum divided by m.

Changes and noise are whole multiples of a quantisation step, so sums are exact in double precision. Clipped changes are
rounded towards zero, so their norms do not grow.
"""

import math
import secrets
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_COARSE = 16
_FINE_BITS, _CELL_BITS, _KEEP_BITS = 20, 16, 27
_FINE = 1 << _FINE_BITS

DEVIATION = _COARSE * _FINE
"""Standard deviation of the noise, in quantisation steps."""

_KEEP_SHIFT = (2 * DEVIATION**2).bit_length() - 1 - _KEEP_BITS
_SPLIT = -1
BLOCK = 2**15
"""Number of values drawn at once; they fit into the processor's cache."""


class Keystream:
    """Random bits from AES-256 in counter mode.

    Parameters
    ----------
    key : bytes | None
        32 bytes, for tests only. By default, a new random key, which is never saved.
    """

    def __init__(self, key: bytes | None = None) -> None:
        # Each key is used for one stream only, so the counter can start at 0.
        cipher = algorithms.AES256(secrets.token_bytes(32) if key is None else key)
        self._encryptor = Cipher(cipher, modes.CTR(bytes(16))).encryptor()

    def words(self, number: int) -> NDArray[np.uint64]:
        """Return the next ``number`` words of 64 bits."""
        return np.frombuffer(self._encryptor.update(bytes(8 * number)), dtype="<u8")


@torch.no_grad()
def draw(stream: Keystream, shape: torch.Size) -> Tensor:
    """Return discrete Gaussian noise with standard deviation ``DEVIATION``: whole numbers in float64."""
    noise = np.empty(shape.numel())
    for start in range(0, len(noise), BLOCK):
        part = noise[start : start + BLOCK]
        part[:] = _values(stream, len(part))
    return torch.from_numpy(noise).view(shape)


def _values(stream: Keystream, number: int) -> NDArray[np.int64]:
    values, accepted = _proposed(stream, number)
    rejected = np.flatnonzero(~accepted)
    if len(rejected):
        values[rejected] = _values(stream, len(rejected))
    return values


def _proposed(stream: Keystream, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return candidates of rejection sampling, and a mask that is True for accepted candidates."""
    # Bits from the top: cell of the table, sign, ``fine``, first bits of the uniform number that decides on acceptance.
    word = stream.words(number)
    cell = (word >> np.uint64(64 - _CELL_BITS)).view(np.int64)
    negative = ((word >> np.uint64(_FINE_BITS + _KEEP_BITS)) & np.uint64(1)).view(np.int64)
    fine = ((word >> np.uint64(_KEEP_BITS)) & np.uint64(_FINE - 1)).view(np.int64)
    decides = (word & np.uint64(2**_KEEP_BITS - 1)).view(np.int64)
    tails, cells = _table()
    coarse = cells[cell]
    split = np.flatnonzero(coarse == _SPLIT)
    share = _refined(cell[split], _CELL_BITS, stream)
    coarse[split] = len(tails) - np.searchsorted(tails, share, side="right")
    base = coarse << _FINE_BITS
    value = base + fine
    # 1 - exp(-x) < x, so almost all values are accepted without computing the exact probability.
    exponent = fine * (value + base)
    accepted = (decides << _KEEP_SHIFT) > exponent
    doubtful = np.flatnonzero(~accepted)
    share = _refined(decides[doubtful], _KEEP_BITS, stream)
    accepted[doubtful] = share >= -np.expm1(exponent[doubtful] / (-2 * DEVIATION**2))
    accepted &= (value > 0) | (negative == 0)  # reject -0, or 0 would be twice as likely
    return (value ^ -negative) + negative, accepted


def _refined(start: NDArray[np.int64], bits: int, stream: Keystream) -> NDArray[np.float64]:
    """Return uniform numbers from 0 to 1 whose first ``bits`` binary digits are ``start``."""
    uniform: NDArray[np.float64] = (start + stream.words(len(start)).astype(np.float64) * 2.0**-64) / 2**bits
    return uniform


@cache
def _table() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return two arrays for drawing the coarse part of a candidate.

    The coarse part of a candidate (see ``_proposed``) is its magnitude divided by ``2 ** _FINE_BITS``, rounded down.
    The first array has the probability that the coarse part is k or more, for k from the largest value down to 1. The
    second array maps uniform numbers to coarse parts: the interval from 0 to 1 is divided into cells of equal length,
    and the array has the coarse part of each cell, or ``_SPLIT`` if several coarse parts belong to the cell.
    """
    # Values of 11 deviations or more are left out: their probability is below the resolution of a uniform number.
    weights = [math.exp(-(value**2) / (2 * _COARSE**2)) for value in range(11 * _COARSE)]
    total = math.fsum(weights)
    tails = np.array([math.fsum(weights[value:]) / total for value in range(len(weights) - 1, 0, -1)])
    edges = np.arange(2**_CELL_BITS + 1) / 2**_CELL_BITS
    most = len(tails) - np.searchsorted(tails, edges[:-1], side="right")
    least = len(tails) - np.searchsorted(tails, edges[1:], side="left")
    return tails, np.where(most == least, most, _SPLIT).astype(np.int64)


@torch.no_grad()
def noised(total: Tensor, step: float, stream: Keystream) -> Tensor:
    """Return ``(total + noise) * step``, with noise from ``draw``.

    ``total`` is a sum of tensors from ``in_steps``.
    """
    return (total + draw(stream, total.shape).to(total.device)).mul_(step)


@torch.no_grad()
def released(
    old: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    holders: Callable[[str], Tensor],
    step: float,
    stream: Keystream | None = None,
) -> dict[str, Tensor]:
    """Return the global state after a round: the old state plus the noisy mean change.

    ``mean`` is the counting mean of the changes, in units of ``step``. ``holders(name)`` is the number of clients that
    sent each entry. Entries that no client sent do not change.
    """
    stream = stream or Keystream()
    new = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in old.items()}
    for name, tensor in new.items():
        parts = (values.reshape(-1).split(BLOCK) for values in (tensor, mean[name], holders(name)))
        for entries, means, clients in zip(*parts, strict=True):
            # The division has rounded the means, but by far less than half a step of the sum.
            total = (means * clients).round_()
            change = noised(total, step, stream).div_(clients.clamp(min=1))
            entries.copy_(torch.where(clients > 0, entries + change, entries))
    return new

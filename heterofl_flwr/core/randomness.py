"""Random numbers as pure functions of a seed and a purpose."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters


def derive(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed derived from all arguments, the same on every platform."""
    # repr quotes text, so ("a", "b") differs from ("a/b",), and 1 from "1".
    text = repr([part if isinstance(part, str) else int(part) for part in (seed, *purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: int | str) -> random.Random:
    """Return a random generator, seeded by ``derive`` with the same arguments."""
    return random.Random(derive(seed, *purpose))


@contextmanager
def kept_random_state(seed: int | None = None) -> Iterator[None]:
    """Context manager that restores the global random states of torch, NumPy and Python on exit.

    With ``seed``, the generators are seeded on entry.
    """
    # If the states were not restored, whoever knows the seed could compute later draws, for example privacy noise.
    cuda = torch.cuda.is_initialized()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - a builder may seed or read the old generator
    with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
        if seed is not None:
            # Not torch.manual_seed: before CUDA is initialised, it stores the seed for CUDA's later initialisation.
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def seed_torch(seed: int) -> None:
    """Seed torch's global generators on all devices."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # takes 1 microsecond; ``torch.manual_seed`` takes up to 500


def initial_state(build: Callable[[float], nn.Module], rate: float, seed: int) -> dict[str, Tensor]:
    """Build a model with all generators seeded, and return copies of its exchanged parameters."""
    with kept_random_state(seed):
        model = build(rate)
    named = exchanged_parameters(model).items()
    if meta := [name for name, parameter in named if parameter.is_meta]:
        raise ConfigError(
            f"build({rate:g}) returns {listed(meta)} on the meta device, which holds no values: build on a CPU"
        )
    return {name: value.detach().to(exchanged_dtype(value), copy=True) for name, value in named}

"""The global random generators, borrowed and given back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_random_state(seed: int | None = None) -> Iterator[None]:
    """Give the global generators of torch, NumPy and Python back as they were; a seed counts for torch's meanwhile.

    Whoever draws from them afterwards, noise for privacy say, must not find a state that others can work out.
    """
    cuda = torch.cuda.is_initialized()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - a builder may seed or read the old generator
    with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
        if seed is not None:
            # Not torch.manual_seed: before CUDA starts, it leaves the seed behind for when it does.
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002

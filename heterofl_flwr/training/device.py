"""The device on which a client computes."""

import ctypes
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.randomness import kept_random_state

Precision = Literal["tf32", "float32", "bf16"]
"""Precision of computations with float32 tensors; see ``arithmetic``."""

KINDS = ("auto", "cpu", "cuda", "mps")
"""Names of devices for ``resolve_device``; ``cuda:1`` selects one of several GPUs."""


QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS", "32"
"""Environment variable with the number of queues to a GPU, and its value.

If there are more streams than queues, streams share queues. CUDA reads the variable when it starts, for example in a
call of ``torch.cuda.is_available``. Therefore, the import of this module sets the variable, unless it is set already.
"""
os.environ.setdefault(*QUEUES)


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device ``name``; raise ``ConfigError`` if the name is unknown or this machine lacks the device.

    ``auto`` means the first available device of CUDA, Apple's MPS and the CPU.
    """
    kind, colon, number = name.partition(":")
    if kind not in KINDS or (colon and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"device is {name!r}; expected one of {', '.join(KINDS)}, or cuda:<number>")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next((device for device, present in available.items() if present), "cpu"))
    if not available.get(kind, True):
        raise ConfigError(f"device is {name!r}, but torch {torch.__version__} finds none here: use auto or cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}, but there are {torch.cuda.device_count()}, counted from 0")
    return torch.device(name)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within this context, the global generators of torch, NumPy and Python start from ``seed``.

    Afterwards they are restored, except the generator of MPS.
    """
    with kept_random_state(seed):
        if device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


def random_states(device: torch.device) -> tuple[object, ...]:
    """Return the states of the global generators of Python, NumPy and torch.

    If ``device`` is a CUDA device, they include the state of torch's generator for this device.
    """
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - models may draw
    gpu = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else []
    return torch.get_rng_state().tolist(), gpu, random.getstate(), np.array(keys).tobytes(), rest


class Draws:
    """Random states of the client in a seat. Within ``current``, they replace the states of the global generators.

    A CUDA graph that is recorded within ``current`` draws its numbers in each replay from this object's GPU generator.
    With a CUDA device, the states of Python and NumPy are not replaced, because a graph cannot draw from them.
    """

    def __init__(self, device: torch.device) -> None:
        self._state = torch.default_generator.get_state()
        self._device = device
        self._host_states = None if device.type == "cuda" else (random.getstate(), np.random.get_state())  # noqa: NPY002
        self._generator = torch.Generator(device) if device.type == "cuda" else None

    def seed(self, seed: int) -> None:
        """Set all states of this object from the seed of the next client."""
        self._state = torch.Generator().manual_seed(seed).get_state()
        if self._generator is not None:
            self._generator.manual_seed(seed)
        if self._host_states is not None:
            self._host_states = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within this context, random numbers are drawn from this object's states."""
        usual = torch.default_generator.get_state()
        torch.default_generator.set_state(self._state)
        self._swap_host_states()
        try:
            with _sharing_state(self._device, self._generator) if self._generator else nullcontext():
                yield
        finally:
            self._swap_host_states()
            self._state = torch.default_generator.get_state()
            torch.default_generator.set_state(usual)

    def _swap_host_states(self) -> None:
        """Swap this object's states of Python and NumPy with the global states; do nothing with a CUDA device."""
        if self._host_states is None:
            return
        usual = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._host_states[0])
        np.random.set_state(self._host_states[1])  # noqa: NPY002
        self._host_states = usual


@contextmanager
def _sharing_state(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    default = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    usual = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    try:
        yield
    finally:
        default.graphsafe_set_state(usual)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within this context, computations with float32 tensors have this ``precision``.

    With ``tf32``, matrix products and convolutions on a GPU round their factors to ten bits of mantissa. With ``bf16``,
    autocast computes matrix products and convolutions in bfloat16; parameters keep their dtype.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = precision != "float32"
    try:
        if precision == "bf16":
            # Autocast's cache would keep the weights of the first step.
            with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
                yield
        else:
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for later allocations.

    Return False if the C library cannot do so. By default, glibc returns many large blocks to the system, and each
    training step allocates them again. With the paper's largest CNN, this takes a tenth of a step's time. This
    package's ClientApp calls the function before clients train or evaluate, and its ServerApp before it evaluates.
    """
    return _set_malloc_thresholds(1 << 30)


def give_back_freed_memory() -> bool:
    """Make this process return large blocks of memory to the system when they are freed.

    Return False if the C library cannot do so. By default, glibc keeps many freed blocks, but few of them fit a
    server's next messages. This package's ServerApp calls the function. If its ClientApp trains in the same process,
    ``keep_freed_memory`` replaces this setting.
    """
    return _set_malloc_thresholds(1 << 20)


def give_back_gaps() -> bool:
    """Release free memory between used blocks to the system; return whether any was released.

    After ``keep_freed_memory``, glibc does not reuse some freed blocks: with the paper's Transformer, the memory of
    this process grows by 6 MB in each step until this function is called. Call it once in many steps.
    """
    trim = _of_glibc("malloc_trim")
    return bool(trim and trim(0))


def _set_malloc_thresholds(size: int) -> bool:
    mallopt, trim_threshold, mmap_threshold = _of_glibc("mallopt"), -1, -3
    return bool(mallopt and mallopt(trim_threshold, size) and mallopt(mmap_threshold, size))


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function

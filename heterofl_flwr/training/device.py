"""The device of a client's computation: its choice, random numbers, precision and memory."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.nn.execution import named_tensors

Precision = Literal["tf32", "float32", "bf16"]
"""Precision of computations in float32."""

KINDS = ("auto", "cpu", "cuda", "mps")
"""Kinds of devices; ``cuda:1`` selects one of several."""


QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS", "32"
"""Variable with the number of queues to a GPU, read when CUDA starts. Streams beyond this number share queues."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return an available device. ``auto`` is CUDA if available, else Apple's MPS, else the CPU."""
    kind, colon, number = name.partition(":")
    if kind not in KINDS or (colon and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"device is {name!r}; expected one of {', '.join(KINDS)}, or cuda:<number>")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if available["cuda"]:
        os.environ.setdefault(*QUEUES)
    if kind == "auto":
        return torch.device(next((device for device, present in available.items() if present), "cpu"))
    if not available.get(kind, True):
        raise ConfigError(f"device is {name!r}, but torch {torch.__version__} finds none here: use auto or cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}, but there are {torch.cuda.device_count()}, counted from 0")
    return torch.device(name)


def tensor_specs(model: nn.Module) -> list[tuple[object, ...]]:
    """Return name, shape, dtype, device and ``requires_grad`` of all parameters and buffers."""
    tensors = named_tensors(model).items()
    return [(name, value.shape, value.dtype, value.device, value.requires_grad) for name, value in tensors]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout uses; restore their state on exit (on CPU and CUDA)."""
    with kept_random_state(seed):
        if device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


class Draws:
    """Random state of one client that replaces torch's own state while the client's model is computed.

    On a GPU, torch's generator then shares its state with the generator of this object. So CUDA graphs that are
    recorded meanwhile always draw from this generator.
    """

    def __init__(self, device: torch.device) -> None:
        self._state = torch.default_generator.get_state()
        self._device = device
        self._generator = torch.Generator(device) if device.type == "cuda" else None

    def seed(self, seed: int) -> None:
        """Start the random numbers of a client."""
        self._state = torch.Generator().manual_seed(seed).get_state()
        if self._generator is not None:
            self._generator.manual_seed(seed)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make torch draw from this state."""
        usual = torch.default_generator.get_state()
        torch.default_generator.set_state(self._state)
        try:
            with _sharing_state(self._device, self._generator) if self._generator else nullcontext():
                yield
        finally:
            self._state = torch.default_generator.get_state()
            torch.default_generator.set_state(usual)


@contextmanager
def _sharing_state(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Make torch's generator of a GPU share the state of ``generator``; restore it on exit."""
    default = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    usual = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    try:
        yield
    finally:
        default.graphsafe_set_state(usual)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in a precision; restore torch's settings on exit.

    ``float32``: full precision. ``tf32``: products on a GPU round their factors to ten bits; other devices use full
    precision. ``bf16``: autocast computes products in bfloat16; parameters keep their dtype.
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
    """Make this process keep freed memory for later allocations; return False if the C library cannot do so.

    By default glibc returns large blocks to the system as soon as they are freed. A training step allocates the same
    blocks again and again, and the system provides them page by page. For the paper's largest CNN this is 2,700 pages
    and a tenth of the time of each step. This function is called where our clients train, and affects the whole
    process.
    """
    return _set_malloc_thresholds(1 << 30)


def give_back_freed_memory() -> bool:
    """Make this process return large blocks to the system when they are freed; return False if it cannot do so.

    By default glibc returns them only until the first large block is freed, and then keeps blocks of that size. The
    messages of a server have many sizes, so few of them fit into kept blocks. With PreResNet18, two to three models'
    worth of memory is unused. This function is called where our server runs. If clients train in the same process, they
    call ``keep_freed_memory`` later, which then takes effect.
    """
    return _set_malloc_thresholds(1 << 20)


def give_back_gaps() -> bool:
    """Return free gaps between used blocks to the system; return False if the C library cannot do so.

    If small blocks enclose a freed aligned block, glibc does not reuse its place for an aligned block of the same size.
    With ``keep_freed_memory``, each step of the paper's Transformer at level c leaks 6 MB in this way. The next steps
    get the returned pages anew, which costs little if it is done once in many steps.
    """
    trim = _of_glibc("malloc_trim")
    return bool(trim and trim(0))


def _set_malloc_thresholds(size: int) -> bool:
    """Set the size from which free memory is returned and blocks are mapped separately; only glibc can do so."""
    mallopt, trim_threshold, mmap_threshold = _of_glibc("mallopt"), -1, -3
    return bool(mallopt and mallopt(trim_threshold, size) and mallopt(mmap_threshold, size))


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of this process's C library; None if it does not exist."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function

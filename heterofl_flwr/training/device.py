"""The device that a client computes on: its name, random numbers, modes and memory."""

import ctypes
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
"""Kinds of devices; ``cuda:1`` names one of several."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return an available device: ``auto`` is CUDA, else Apple's MPS, else the CPU."""
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


def tensor_specs(model: nn.Module) -> list[tuple[object, ...]]:
    """Return name, shape, type, device and ``requires_grad`` of all parameters and buffers."""
    tensors = named_tensors(model).items()
    return [(name, value.shape, value.dtype, value.device, value.requires_grad) for name, value in tensors]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, which dropout draws from; give their state back (on CPU and CUDA)."""
    with kept_random_state(seed):
        if device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


class Draws:
    """Random states of one client, which take the place of torch's own while its model is computed.

    On a GPU its generator shares its state with torch's meanwhile, so that graphs recorded then draw from it for ever.
    """

    def __init__(self, device: torch.device) -> None:
        self._state = torch.default_generator.get_state()
        self._device = device
        self._generator = torch.Generator(device) if device.type == "cuda" else None

    def seed(self, seed: int) -> None:
        """Begin the draws of a client."""
        self._state = torch.Generator().manual_seed(seed).get_state()
        if self._generator is not None:
            self._generator.manual_seed(seed)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let torch draw from these states."""
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
    """Let torch's generator of a GPU share the state of another one."""
    default = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    usual = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    try:
        yield
    finally:
        default.graphsafe_set_state(usual)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in a precision, and restore torch's own switches.

    ``float32``: exact. ``tf32``: products on a GPU round their factors to ten bits; other devices are exact. ``bf16``:
    products are in bfloat16 by autocast; parameters stay in their type.
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
    """Let this process keep freed memory for its next allocations; return whether the C library has that switch.

    By default glibc gives large blocks back to the system as soon as they are free. A training step frees and takes
    the same blocks again and again, and the system hands them out page by page: for the paper's largest CNN 2,700 pages
    and a tenth of the time of each step. Called where our clients train; it changes the whole process.
    """
    return _set_malloc_thresholds(1 << 30)


def give_back_freed_memory() -> bool:
    """Let this process give large blocks back when they are freed; return whether the C library has that switch.

    By default glibc does so until the first large block is freed, and from then on keeps blocks of that size. The
    messages of a server have many sizes, so what it kept would fit few of the next ones: with PreResNet18, two to three
    models' worth. Called where our server runs; where clients train in the same process, their call comes later and
    counts.
    """
    return _set_malloc_thresholds(1 << 20)


def give_back_gaps() -> bool:
    """Return free gaps between used blocks to the system; return whether the C library can do so.

    glibc finds no room for an aligned block where one of the same size was, if small blocks keep the two neighbours
    apart. With kept memory (``keep_freed_memory``) each step of the paper's Transformer at level c then leaves 6 MB
    behind, without end. The next steps get those pages anew, which costs little if it is done once in many steps.
    """
    trim = _of_glibc("malloc_trim")
    return bool(trim and trim(0))


def _set_malloc_thresholds(size: int) -> bool:
    """Set from how many bytes on free memory goes back, and blocks are mapped one by one; glibc alone can do so."""
    mallopt, trim_threshold, mmap_threshold = _of_glibc("mallopt"), -1, -3
    return bool(mallopt and mallopt(trim_threshold, size) and mallopt(mmap_threshold, size))


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of this process's C library; None where that is not glibc."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function

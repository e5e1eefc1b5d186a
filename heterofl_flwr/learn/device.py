"""Choose the device that a client computes on."""

import torch

from heterofl_flwr.errors import ConfigError

KINDS = ("auto", "cpu", "cuda", "mps")
"""What may be asked for; ``cuda:1`` names one of several."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return a device that is there: ``auto`` takes CUDA, else Apple's MPS, else the CPU."""
    kind, _, number = name.partition(":")
    if kind not in KINDS or (number and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"device is {name!r}; expected one of {', '.join(KINDS)}, or cuda:<number>")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next((device for device, there in available.items() if there), "cpu"))
    if not available.get(kind, True):
        raise ConfigError(f"device is {name!r}, but torch {torch.__version__} finds none here: use auto or cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}, but there are {torch.cuda.device_count()}, counted from 0")
    return torch.device(name)

"""The classification models of torchvision, with inputs as small as each of them takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simulations.model_zoo.training_check import make_lively

SIZE = 64
ENDS = (3, 1000)
"""The channels of an image, and the classes."""
DOUBLE = 30_000_000
"""Up to so many parameters a model is checked in double precision; beyond, only if its family asks for it."""

# At small rates little of the input arrives at the end of these; beside the rest it would be lost in single precision.
_FADING = ("efficientnet", "vgg")

# Those that do not take 64 x 64: auxiliary heads, windows and patches of a fixed size.
_SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}


class _Undrawn(TorchFunctionMode):
    """Puts zeros where numbers are drawn: all parameters are drawn anew, and twice would take long for large models."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def names() -> list[str]:
    """Return the names of all of them."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def size_of(name: str) -> int:
    """Return the side of the images for a model."""
    return _SIZES.get(name, SIZE)


def make(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a model with lively weights and two images."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"image_size": size_of(name)} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # by a slow generator, and all weights are drawn anew
    with _Undrawn():
        model = torchvision.models.get_model(name, weights=None, **options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = torch.float64 if parameters <= DOUBLE or name.startswith(_FADING) else torch.float32
    model = model.to(dtype)
    make_lively(model, seed)
    return model, torch.randn(2, 3, size_of(name), size_of(name), dtype=dtype)

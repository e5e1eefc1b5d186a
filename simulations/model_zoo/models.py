"""The classification models of torchvision, drawn at random, and what was found of each of them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.model_zoo.check import Checked, check

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


def make(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a model with drawn weights and two images."""
    torch.manual_seed(seed)
    size = _SIZES.get(name, SIZE)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # by a slow generator, and all weights are drawn anew
    with _Undrawn():
        model = torchvision.models.get_model(name, weights=None, **options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = torch.float64 if parameters <= DOUBLE or name.startswith(_FADING) else torch.float32
    model = model.to(dtype)
    draw_weights(model, seed)
    return model, torch.randn(2, 3, size, size, dtype=dtype)


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Draw all parameters and batch norm statistics so that every one matters: fresh models have heads of zeros."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.dim() > 1:
                deviation = math.sqrt(2 / parameter[0].numel())  # by the inputs of a row, so that no signal fades
                parameter.normal_(0, deviation, generator=generator)
            elif name == "weight":  # of a norm
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
        for name, buffer in layer.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.normal_(0, 0.1, generator=generator)
            elif name == "running_var":
                buffer.uniform_(0.5, 1.5, generator=generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Checked):
    """What was measured on a model, or why it does not work."""

    name: str
    made: str  # on which machine, with which versions, at which commit
    size: int  # the side of the images
    reason: str = ""  # empty if everything holds


def find(name: str, made: str, seed: int) -> Finding:
    """Check one model of torchvision."""
    model, inputs = make(name, seed)
    facts: dict[str, Any] = {"name": name, "made": made, "size": inputs.shape[-1]}
    number = sum(parameter.numel() for parameter in model.parameters())
    try:
        return Finding(**facts, **asdict(check(model, inputs, ENDS)))
    except (HeteroFLError, RuntimeError) as error:  # torch raises the latter where shapes do not fit
        return Finding(**facts, parameters={1.0: number}, reason=str(error))


def read(path: Path) -> dict[str, Finding]:
    """Return the findings in a file by the models' names; of two of one model the later. No file, no findings."""
    findings = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            found = json.loads(line)
            found["parameters"] = {float(rate): count for rate, count in found["parameters"].items()}
            findings[found["name"]] = Finding(**found)
        except (ValueError, TypeError, KeyError) as error:
            what = f"line {number} of {path} is no finding of this command ({error})"
            raise ConfigError(f"{what}; remove it, or name another file with --findings") from error
    return findings

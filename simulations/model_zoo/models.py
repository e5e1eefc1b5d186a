"""``Finding``: the result of checking a model with random weights, stored as a line of a file."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import UnsupportedLayerError
from heterofl_flwr.nn.execution import num_parameters
from simulations.model_zoo.check import BrokenPropertyError, Checked, check
from simulations.model_zoo.sources import SOURCES, NotBuiltError

DOUBLE = 30_000_000
"""Maximum number of parameters of models that are checked in double precision; for ``_FADING`` there is no maximum."""

# At small rates the outputs of these depend so little on the input that single precision would lose the difference.
_FADING = ("efficientnet", "vgg")


# Attempts: the multiple to which widths are rounded up, and the gain of random weights. Products of experts need
# multiples of 4. With large weights, gates may amplify rounding errors; with smaller weights they do not.
_ATTEMPTS = ((1, 2), (1, 1), (4, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Checked):
    """Measurements of a model, or the reason why it does not work."""

    key: str  # package:name, as in the command line
    name: str
    family: str
    made: str  # date, machine, versions and commit of the check
    verdict: str  # exact, unproven, refused, wrong or not built
    reason: str = ""
    double: bool = True  # whether it was checked in double precision
    parameters: dict[float, int] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Package of the model."""
        return self.key.partition(":")[0]

    @property
    def half(self) -> float:
        """Fraction of the parameters in a slice of rate 0.5."""
        return self.parameters[0.5] / self.parameters[1.0]


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int, gain: float = 2) -> None:
    """Draw all parameters and batch norm statistics, because new models may have parameters that are 0.

    With a larger gain, the output of a deep model depends more on its input.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.dim() > 1:
                deviation = math.sqrt(gain / parameter[0].numel())  # by the number of inputs, to preserve the variance
                parameter.normal_(0, deviation, generator=generator)
            elif name == "weight":  # the weight of a norm
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
        for name, buffer in layer.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.normal_(0, 0.1, generator=generator)
            elif name == "running_var":
                buffer.uniform_(0.5, 1.5, generator=generator)


def find(key: str, made: str, seed: int) -> Finding:
    """Check a model and return the finding."""
    torch.manual_seed(seed)
    source, _, name = key.partition(":")
    facts: dict[str, Any] = {"key": key, "name": name, "family": SOURCES[source].family(name), "made": made}
    try:
        case = SOURCES[source].make(name)
    except NotBuiltError as error:
        return Finding(**facts, verdict="not built", reason=str(error))
    model, inputs = _in_double(case.model, case.inputs)
    facts["name"], facts["double"] = case.name, next(model.parameters()).dtype == torch.float64
    verdict, reason = "refused", ""
    for multiple_of, gain in _ATTEMPTS:
        draw_weights(model, seed, gain)
        try:
            found = check(model, inputs, multiple_of=multiple_of)
        except UnsupportedLayerError as error:
            verdict, reason = "refused", str(error)
            if "multiple_of" not in reason:
                break
        except BrokenPropertyError as error:
            verdict, reason = "wrong", str(error)
            if gain == 1:
                break
        else:
            note = f"multiple_of={multiple_of}" if multiple_of > 1 else ""
            return Finding(**facts, verdict="unproven" if found.unproven else "exact", reason=note, **asdict(found))
    return Finding(**facts, verdict=verdict, reason=reason, parameters={1.0: num_parameters(model)})


def _in_double(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a model and its inputs in double precision if the model can run in it, else unchanged."""
    small = num_parameters(model) <= DOUBLE
    if small or type(model).__name__.lower().startswith(_FADING):
        exact = inputs.double() if inputs.is_floating_point() else inputs
        try:
            with torch.no_grad():
                model.double().eval()(exact)
            return model, exact
        except RuntimeError:  # an operator without double precision, or code that mixes precisions
            model.float()
    return model, inputs


def read(path: Path) -> dict[str, Finding]:
    """Return the findings in a file by key, the latest for each key; empty if the file does not exist."""
    findings = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        found = json.loads(line)
        found["parameters"] = {float(rate): count for rate, count in found["parameters"].items()}
        findings[found["key"]] = Finding(**found)
    return findings

"""Wide models: each layer of a wide model computes the layers of several clients at once."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import HeteroFLError

GROWING: Mapping[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ("in_channels", "out_channels", "groups")),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), ("num_features",)),
    nn.GroupNorm: ("num_groups", "num_channels"),
}
"""Layer types other than ``Linear`` that can be widened, and their attributes to multiply by the number of clients.

Subclasses are left out, because they may compute something else.
"""


class IncompatibleError(HeteroFLError):
    """Error for a model that cannot be computed for several clients at once."""


def _joined(layer: nn.Module, clients: int) -> nn.Module:
    parameters = {
        id(value): nn.Parameter(value.new_empty(clients * value.shape[0], *value.shape[1:]), value.requires_grad)
        for value in layer.parameters()
    }
    wide = copy.deepcopy(layer, dict(parameters))  # deepcopy reuses the objects in its memo
    for number in GROWING[type(layer)]:
        setattr(wide, number, clients * getattr(layer, number))
    return wide


class _Linear(nn.Module):
    """Linear layers of several clients, for inputs of shape (batch, clients * inputs)."""

    def __init__(self, layer: nn.Linear, clients: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.new_empty(clients, *layer.weight.shape), layer.weight.requires_grad)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.new_empty(clients, *layer.bias.shape), layer.bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        clients, _, inputs = self.weight.shape
        parts = x.reshape(len(x), clients, inputs).transpose(0, 1)
        outputs = (
            torch.bmm(parts, self.weight.mT)
            if self.bias is None
            else torch.baddbmm(self.bias[:, None], parts, self.weight.mT)
        )  # (clients, batch, outputs)
        return outputs.transpose(0, 1).flatten(1)


def wide_twin(model: nn.Module, clients: int) -> nn.Module:
    """Return a wide copy of a model; the copy computes the models of several clients at once.

    Raise ``IncompatibleError`` if a layer with parameters is not a convolution, linear layer, batch norm or group norm,
    or if its type is a subclass of these types. Inputs of shape (batch, clients * channels, ...) give outputs of shape
    (batch, clients * classes). The parameters of the copy are uninitialised. The outputs of the copy are wrong if the
    model's code expects a certain length of axis 1, so check them.
    """
    wide: dict[int, nn.Module] = {}
    for name, layer in model.named_modules():
        if type(layer) in GROWING:
            wide[id(layer)] = _joined(layer, clients)
        elif type(layer) is nn.Linear:
            wide[id(layer)] = _Linear(layer, clients)
        elif any(True for _ in layer.parameters(recurse=False)):
            what = f"layer {name or '(the model itself)'} of type {type(layer).__name__}"
            raise IncompatibleError(f"{what} has no wide twin")
    return copy.deepcopy(model, dict(wide))

"""The Scaler on layers that somebody else wrote: a hook behind each whose outputs shrink."""

from fractions import Fraction

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.scaler import Scaler


def attach_scaler(full: nn.Module, model: nn.Module, ratio: Fraction) -> None:
    """Let each layer of a slice whose outputs are fewer than in the full model be followed by a Scaler."""
    if ratio > 1:
        raise ConfigError(f"the rate is {float(ratio):g} times the global rate; the global rate is the largest")
    if ratio == 1:
        return
    hook = _Scaling(ratio)
    layers = dict(model.named_modules())
    for name, layer in full.named_modules():
        outputs = _outputs(layer)
        if outputs is not None and outputs != _outputs(layers[name]):
            layers[name].register_forward_hook(hook)


class _Scaling:
    """Scales what a layer puts out; of several outputs the first."""

    def __init__(self, ratio: Fraction) -> None:
        self._scaler = Scaler(ratio)

    def __call__(self, layer: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        scale = self._scaler.train(layer.training)
        return (scale(output[0]), *output[1:]) if isinstance(output, tuple) else scale(output)


def _outputs(layer: nn.Module) -> int | None:
    """Return how many outputs a layer has that the Scaler is for."""
    if isinstance(layer, nn.MultiheadAttention):
        return layer.out_proj.weight.shape[0]
    if isinstance(layer, nn.Embedding):
        return layer.weight.shape[1]
    if isinstance(layer, nn.Linear):
        return layer.weight.shape[0]
    if isinstance(layer, _ConvNd):
        return layer.out_channels
    return None

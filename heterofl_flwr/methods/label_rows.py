"""Which parameters of a model have a row for each class."""

from collections.abc import Callable

from torch import nn

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ShapeError


def find_label_rows(build: Callable[[float], nn.Module], mix: Mix) -> tuple[str, ...]:
    """Return the parameters whose rows belong to classes.

    A model may name them itself (``label_rows``). Otherwise they are those of the last linear layer whose outputs do
    not shrink with the rate.
    """
    full, small = build(mix.global_rate), build(mix.rates[-1])
    named = getattr(full, "label_rows", None)
    if named is not None:
        return tuple(named)
    layers = dict(small.named_modules())
    found: tuple[str, ...] = ()
    for name, layer in full.named_modules():
        if isinstance(layer, nn.Linear):
            partner = layers.get(name)
            if not isinstance(partner, nn.Linear):
                raise ShapeError(
                    f"layer {name} is Linear in the global model, but {type(partner).__name__} in a smaller"
                )
            if partner.out_features == layer.out_features:
                prefix = f"{name}." if name else ""
                found = tuple(prefix + own for own, _ in layer.named_parameters(recurse=False))
    return found

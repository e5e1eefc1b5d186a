"""Recurrent layers: every gate keeps its own prefix of hidden units."""

import re

from torch import nn

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.rules.registry import register

_GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}
_LATER_INPUT = re.compile(r"weight_ih_l[1-9]\d*(_reverse)?")


@register(*_GATES)
def recurrent(full: nn.RNNBase | nn.RNNCellBase, local: nn.RNNBase | nn.RNNCellBase) -> dict[str, Axes]:
    """Keep a prefix of each gate's rows; later layers of a bidirectional one keep a prefix of each direction."""
    gates = next(number for kind, number in _GATES.items() if isinstance(full, kind))
    directions = 2 if getattr(full, "bidirectional", False) else 1
    kept = dict(local.named_parameters())
    axes = {}
    for name, parameter in full.named_parameters():
        # The projection (weight_hr) has no gates: its rows are the projected units.
        parts = {} if name.startswith("weight_hr") else {0: gates}
        if _LATER_INPUT.fullmatch(name):
            parts[1] = directions
        axes[name] = axes_between(parameter.shape, kept[name].shape, parts)
    return axes

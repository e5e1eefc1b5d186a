"""Activations that overwrite their input, as those that do not.

In a program nothing is gained by overwriting, and ONNX has operators only for the others: of one that overwrites, the
exporter writes out the arithmetic, which makes a MobileNet slower and takes minutes.
"""

import torch
from torch import fx

from heterofl_flwr.export.folding import LAYERS, NORM

_aten = torch.ops.aten
_OTHERS = {
    _aten.elu_.default: _aten.elu.default,
    _aten.hardsigmoid_.default: _aten.hardsigmoid.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.leaky_relu_.default: _aten.leaky_relu.default,
    _aten.relu6_.default: _aten.relu6.default,
    _aten.relu_.default: _aten.relu.default,
    _aten.silu_.default: _aten.silu.default,
}


def out_of_place(module: fx.GraphModule) -> int:
    """Change a graph's activations; return how many there were that nothing else could notice.

    Nothing notices where the input is a tensor of its own, no view, and has no other user.
    """
    changed = 0
    for node in module.graph.nodes:
        other = _OTHERS.get(node.target)
        before = node.args[0] if other else None
        if isinstance(before, fx.Node) and before.target in (*LAYERS, NORM) and len(before.users) == 1:
            node.target = other
            changed += 1
    module.recompile()
    return changed

"""What in a model, seen without running it, keeps clients from training together."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from heterofl_flwr.nn.ordered import OrderedDropout

_LAYER_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def obstacle(model: nn.Module) -> str | None:
    """Return why clients with such a model cannot train together, each as if it were alone; None if nothing shows."""
    for name, layer in model.named_modules():
        what = f"layer {name or '(the model itself)'}"
        if any(getattr(layer, hooks, None) for hooks in _LAYER_HOOKS):
            return f"a hook watches {what}"
        if isinstance(layer, OrderedDropout) or (isinstance(layer, _DropoutNd) and layer.p):
            return f"{what} draws random numbers"
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            return f"{what} changes its running statistics"
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, hooks, None) for hooks in _PARAMETER_HOOKS):
            return f"a hook watches parameter {name}"
    return None

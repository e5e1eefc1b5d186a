"""torch's multi-head attention: every head keeps its own prefix."""

from torch import nn

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.rules.registry import register
from heterofl_flwr.errors import ShapeError

# Axes made of heads, for each parameter: (axis, how many times the heads stand one after another).
_HEADED = {
    "in_proj_weight": (0, 3),
    "in_proj_bias": (0, 3),
    "q_proj_weight": (0, 1),
    "k_proj_weight": (0, 1),
    "v_proj_weight": (0, 1),
    "bias_k": (2, 1),
    "bias_v": (2, 1),
    "out_proj.weight": (1, 1),
}


@register(nn.MultiheadAttention)
def multihead_attention(full: nn.MultiheadAttention, local: nn.MultiheadAttention) -> dict[str, Axes]:
    """Keep all heads, each with a prefix of its rows; or, where the head dimension stays, the first heads."""
    if full.num_heads != local.num_heads and full.head_dim != local.head_dim:
        raise ShapeError(
            f"{full.num_heads} heads of {full.head_dim} became {local.num_heads} heads of {local.head_dim}: "
            f"keep either the number of heads or their dimension"
        )
    heads = full.num_heads if full.num_heads == local.num_heads else 1
    kept = dict(local.named_parameters())
    axes = {}
    for name, parameter in full.named_parameters():
        axis, times = _HEADED.get(name, (0, 1))
        parts = {axis: heads * times} if name in _HEADED else None
        axes[name] = axes_between(parameter.shape, kept[name].shape, parts)
    return axes

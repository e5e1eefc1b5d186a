"""Self-attention whose heads are cut one by one, and its slicing rule."""

import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.rules.registry import register
from heterofl_flwr.errors import ConfigError, ShapeError


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention with a projection each for query, key, value and output.

    The temperature is the square root of the head dimension of this very model, not of the global one. Attention
    weights have no dropout.

    Parameters
    ----------
    embedding : int
        Width of input and output, a multiple of ``heads``.
    heads : int
        Number of heads; the same at every rate.
    scaler : nn.Module
        The model's Scaler, applied after each projection.
    """

    def __init__(self, embedding: int, heads: int, scaler: nn.Module) -> None:
        super().__init__()
        if embedding % heads:
            raise ConfigError(f"an embedding of {embedding} does not divide in {heads} heads")
        self.heads = heads
        self.scaler = scaler
        self.linear_q = nn.Linear(embedding, embedding)
        self.linear_k = nn.Linear(embedding, embedding)
        self.linear_v = nn.Linear(embedding, embedding)
        self.linear_o = nn.Linear(embedding, embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention's output (batch, sequence, embedding) on an input of the same shape."""
        query, key, value = (self._split(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (batch, heads, sequence, head)
        output: torch.Tensor = self.scaler(self.linear_o(mixed.transpose(1, 2).flatten(2)))
        return output

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        split: torch.Tensor = self.scaler(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split  # (batch, heads, sequence, head)


@register(MultiHeadAttention)
def _attention_axes(full: MultiHeadAttention, local: MultiHeadAttention) -> dict[str, Axes]:
    """Cut q, k, v by row and o by column within each head; their other axes are the residual stream, a prefix."""
    if full.heads != local.heads:
        raise ShapeError(f"attention has {full.heads} heads in the full model and {local.heads} in the local one")
    parts = {f"linear_{letter}.{kind}": {0: full.heads} for letter in "qkv" for kind in ("weight", "bias")}
    parts |= {"linear_o.weight": {1: full.heads}, "linear_o.bias": {}}
    shapes = dict(local.named_parameters())
    return {
        name: axes_between(parameter.shape, shapes[name].shape, parts[name])
        for name, parameter in full.named_parameters()
    }

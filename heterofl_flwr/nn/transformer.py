"""The paper's Transformer encoder for masked language modelling (WikiText2)."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.common.errors import DataError, ShapeError
from heterofl_flwr.core.axes import Axes
from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.core.layer_rules import axes_by_name, register
from heterofl_flwr.core.levels import width
from heterofl_flwr.nn.layers import make_scaler


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention with separate projections for query, key, value and output.

    Attention weights have no dropout.

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
        self.heads = heads
        self.scaler = scaler
        self.linear_q = nn.Linear(embedding, embedding)
        self.linear_k = nn.Linear(embedding, embedding)
        self.linear_v = nn.Linear(embedding, embedding)
        self.linear_o = nn.Linear(embedding, embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output (batch, sequence, embedding) for an input of the same shape."""
        query, key, value = (
            self.scaler(linear(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, sequence, head)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # (batch, heads, sequence, head)
        output: torch.Tensor = self.scaler(self.linear_o(mixed.transpose(1, 2).flatten(2)))
        return output


@register(MultiHeadAttention)
def _attention_axes(full_layer: MultiHeadAttention, local: MultiHeadAttention) -> dict[str, Axes]:
    """Slicing rule: keep the first rows of each head in q, k and v, and the first columns of each head in o."""
    if full_layer.heads != local.heads:
        raise ShapeError(f"attention has {full_layer.heads} heads in the full model and {local.heads} in the local one")
    if full_layer.linear_o.out_features == local.linear_o.out_features:
        return {}  # No head is sliced: the rules of the projections apply, also if peft has wrapped them.
    parts = {f"linear_{letter}.{kind}": {0: full_layer.heads} for letter in "qkv" for kind in ("weight", "bias")}
    parts |= {"linear_o.weight": {1: full_layer.heads}, "linear_o.bias": {}}
    return axes_by_name(full_layer, local, parts.__getitem__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Size of a Transformer at rate 1. ``sequence`` is the maximum input length."""

    sequence: int = 64
    embedding: int = 256
    hidden: int = 512
    heads: int = 8
    layers: int = 4
    dropout: float = 0.2


class Transformer(nn.Module):
    """The paper's Transformer: token and position embedding, encoder layers, decoder to the vocabulary.

    Encoder layers have GELU, and LayerNorm after each sub-layer. A head has ``rate`` times its full width, rounded up.

    Parameters
    ----------
    vocabulary : int
        Number of words. The token with the number ``vocabulary`` is [MASK].
    shape : TransformerShape
        The size at rate 1.
    rate, global_rate, scaler
        As for ``CNN``.
    encoder_init : Variant
        ``paper``: the encoder layers start as identical copies. ``fixed``: each layer is initialised independently.
    """

    label_rows: tuple[str, ...] = ("embedding.token.weight", "decoder.linear2.weight", "decoder.linear2.bias")

    def __init__(
        self,
        vocabulary: int,
        shape: TransformerShape | None = None,
        *,
        rate: float = 1.0,
        global_rate: float = 1.0,
        scaler: bool = True,
        encoder_init: Variant = "paper",
    ) -> None:
        super().__init__()
        Fidelity(encoder_init=encoder_init)
        shape = shape or TransformerShape()
        scale = make_scaler(rate, global_rate, scaler)
        embedding = width(shape.embedding, rate, shape.heads)
        self.mask_token = vocabulary
        self.embedding = _Embedding(vocabulary + 1, shape.sequence, embedding, shape.dropout, scaler=scale)

        def layer() -> nn.Module:
            hidden = width(shape.hidden, rate)
            return _EncoderLayer(embedding, hidden, shape.heads, shape.dropout, scaler=scale)

        first_layer = layer()
        later_layers = (
            layer() if encoder_init == "fixed" else copy.deepcopy(first_layer) for _ in range(1, shape.layers)
        )
        self.encoder = nn.Sequential(first_layer, *later_layers)
        decoder = {"linear1": nn.Linear(embedding, embedding), "scaler": scale, "activation": nn.GELU()}
        decoder |= {"norm": nn.LayerNorm(embedding), "linear2": nn.Linear(embedding, vocabulary)}
        self.decoder = nn.Sequential(OrderedDict(decoder))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, vocabulary, sequence) for token numbers (batch, sequence)."""
        logits: torch.Tensor = self.decoder(self.encoder(self.embedding(tokens)))
        return logits.transpose(1, 2)


class _Embedding(nn.Module):
    def __init__(self, tokens: int, sequence: int, embedding: int, dropout: float, *, scaler: nn.Module) -> None:
        super().__init__()
        self.scaler = scaler
        self.position = nn.Embedding(sequence, embedding)
        self.token = nn.Embedding(tokens, embedding)
        self.norm = nn.LayerNorm(embedding)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        if length > self.position.num_embeddings:
            raise DataError(f"{length} tokens are too many: this model takes up to {self.position.num_embeddings}")
        position = self.scaler(self.position.weight[:length])  # (sequence, embedding)
        embedded: torch.Tensor = self.dropout(self.norm(self.scaler(self.token(tokens)) + position))
        return embedded


class _EncoderLayer(nn.Module):
    def __init__(self, embedding: int, hidden: int, heads: int, dropout: float, *, scaler: nn.Module) -> None:
        super().__init__()
        self.scaler = scaler
        self.attention = MultiHeadAttention(embedding, heads, scaler)
        self.norm1 = nn.LayerNorm(embedding)
        self.linear1 = nn.Linear(embedding, hidden)
        self.linear2 = nn.Linear(hidden, embedding)
        self.norm2 = nn.LayerNorm(embedding)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.linear1.weight, std=0.02)
        nn.init.normal_(self.linear2.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.dropout(self.attention(x)))
        h = self.dropout(F.gelu(self.scaler(self.linear1(x))))  # (batch, sequence, hidden)
        y: torch.Tensor = self.norm2(x + self.dropout(self.scaler(self.linear2(h))))
        return y

"""The Transformer and its attention."""

import math

import pytest
import torch

from heterofl_flwr.common.errors import DataError, ShapeError
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.nn.transformer import MultiHeadAttention, Transformer, TransformerShape

SHAPE = TransformerShape(sequence=6, embedding=32, hidden=24, heads=4, layers=3)


@pytest.mark.parametrize(("rate", "length"), [(1.0, 1), (0.5, 4), (0.0625, 6)])
def test_words_are_axis_one_and_the_mask_token_follows_them(rate, length):
    model = Transformer(20, SHAPE, rate=rate)
    assert model.mask_token == 20
    assert len(model.embedding.token.weight) == 21
    assert "embedding.token.weight" in model.label_rows  # the paper counts its rows by word too
    assert model(torch.full((2, length), model.mask_token)).shape == (2, 20, length)
    with pytest.raises(DataError, match="7 tokens are too many: this model takes up to 6"):
        model(torch.zeros(1, 7, dtype=torch.int64))


def test_encoder_layers_start_as_identical_copies_or_not():
    for choice, same in (("paper", True), ("fixed", False)):
        first, *others = Transformer(20, SHAPE, encoder_init=choice).encoder
        for other in others:
            assert torch.equal(first.linear1.weight, other.linear1.weight) == same
            assert torch.equal(first.attention.linear_q.weight, other.attention.linear_q.weight) == same
            assert first.linear1.weight is not other.linear1.weight


def test_weights_start_as_the_papers():
    model = Transformer(20, TransformerShape(embedding=256, layers=1))
    layer = model.encoder[0]
    for linear in (layer.linear1, layer.linear2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.decoder.linear1.weight.abs().max() <= 1 / 16
    assert all((value == 0).all() for name, value in model.named_parameters() if name.endswith("bias"))


def _slow_attention(layer, x):
    """Attention as in the textbook: one head and one sample at a time."""
    heads = []
    query, key, value = (linear(x) for linear in (layer.linear_q, layer.linear_k, layer.linear_v))
    width = query.shape[-1] // layer.heads
    for head in range(layer.heads):
        own = slice(head * width, (head + 1) * width)
        scores = query[:, :, own] @ key[:, :, own].transpose(1, 2) / math.sqrt(width)
        heads.append(scores.softmax(-1) @ value[:, :, own])
    return layer.linear_o(torch.cat(heads, -1))


def test_it_is_the_textbooks_attention():
    layer, x = MultiHeadAttention(24, 4, Scaler(1.0)), torch.randn(2, 5, 24)
    torch.testing.assert_close(layer(x), _slow_attention(layer, x), rtol=1e-4, atol=1e-6)
    with pytest.raises(ShapeError, match="4 heads in the full model and 2 in the local one"):
        Plan.of(layer, MultiHeadAttention(24, 2, Scaler(1.0)))


def test_all_four_projections_are_scaled_in_training():
    layer, x = MultiHeadAttention(8, 2, Scaler(0.5)).train(), torch.randn(2, 5, 8)
    scaled = MultiHeadAttention(8, 2, Scaler(1.0))
    scaled.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()})
    torch.testing.assert_close(layer(x), scaled(x), rtol=1e-4, atol=1e-6)


def test_a_smaller_one_keeps_the_start_of_each_head():
    full, local = MultiHeadAttention(12, 3, Scaler(1.0)), MultiHeadAttention(6, 3, Scaler(0.5))
    heads = {"linear_[qkv].*": (3, 0), "linear_o.weight": (3, 1)}
    assert Plan.of(full, local) == Plan.between(full.state_dict(), local.state_dict(), heads=heads)

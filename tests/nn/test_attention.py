import math

import pytest
import torch

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError, ShapeError
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.nn.transformer import MultiHeadAttention


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


def test_all_four_projections_are_scaled_in_training():
    layer, x = MultiHeadAttention(8, 2, Scaler(0.5)).train(), torch.randn(2, 5, 8)
    scaled = MultiHeadAttention(8, 2, Scaler(1.0))
    scaled.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()})
    torch.testing.assert_close(layer(x), scaled(x), rtol=1e-4, atol=1e-6)


def test_a_smaller_one_keeps_the_start_of_each_head_and_of_the_residual_stream():
    full, local = MultiHeadAttention(12, 3, Scaler(1.0)), MultiHeadAttention(6, 3, Scaler(0.5))
    sub = Plan.of(full, local).extract(full.state_dict())
    in_heads, stream = [0, 1, 4, 5, 8, 9], range(6)
    for letter in "qkv":
        linear = getattr(full, f"linear_{letter}")
        assert torch.equal(sub[f"linear_{letter}.weight"], linear.weight[in_heads][:, stream])
        assert torch.equal(sub[f"linear_{letter}.bias"], linear.bias[in_heads])
    assert torch.equal(sub["linear_o.weight"], full.linear_o.weight[stream][:, in_heads])
    assert torch.equal(sub["linear_o.bias"], full.linear_o.bias[stream])
    local.load_state_dict(sub, strict=True)


def test_it_equals_the_full_one_with_the_rest_zeroed_but_for_the_temperature():
    """Zeroed rows of q, k, v add nothing to the products of a head; only the temperature differs, by sqrt(2)."""
    full, local = MultiHeadAttention(12, 3, Scaler(1.0)).eval(), MultiHeadAttention(6, 3, Scaler(0.5)).eval()
    local.load_state_dict(Plan.of(full, local).extract(full.state_dict()))
    dropped = [2, 3, 6, 7, 10, 11]
    with torch.no_grad():
        for linear in (full.linear_q, full.linear_k, full.linear_v):
            linear.weight[dropped] = 0
            linear.bias[dropped] = 0
        full.linear_q.weight *= math.sqrt(2)
        full.linear_q.bias *= math.sqrt(2)
    x = torch.randn(2, 5, 12)
    x[..., 6:] = 0
    torch.testing.assert_close(local(x[..., :6]), full(x)[..., :6], rtol=1e-4, atol=1e-6)


def test_another_number_of_heads_is_no_slice():
    with pytest.raises(ShapeError, match="4 heads in the full model and 2 in the local one"):
        Plan.of(MultiHeadAttention(16, 4, Scaler(1.0)), MultiHeadAttention(8, 2, Scaler(1.0)))


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="10 does not divide in 4 heads"):
        MultiHeadAttention(10, 4, Scaler(1.0))

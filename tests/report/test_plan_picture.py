import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from heterofl_flwr.core.axes import Axis
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.models import build_model
from heterofl_flwr.nn.transformer import TransformerShape
from heterofl_flwr.report import draw_plans
from heterofl_flwr.report.drawing import to_png
from heterofl_flwr.report.plan_picture import count_holders

RATES = [1.0, 0.5, 0.5, 0.25, 0.0625]


def test_it_counts_the_holders_of_each_entry():
    slices = {
        1.0: (Axis(4, 4), Axis(4, 4)),
        0.5: (Axis(4, 2), Axis(4, 2, parts=2)),
        0.25: (Axis(4, 1, index=(3,)), Axis(4, 1)),
    }
    counts = count_holders(slices, Counter({1.0: 1, 0.5: 2, 0.25: 5}))
    assert counts.tolist() == [[3, 1, 3, 1], [3, 1, 3, 1], [1, 1, 1, 1], [6, 1, 1, 1]]


def test_it_shows_each_rate_and_the_number_of_clients_that_hold_each_entry(build):
    figure = draw_plans(build, RATES)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["a: 1 client", "b: 2 clients", "c: 1 client", "e: 1 client", "the global model"]
    whole, bar = figure.axes[-2:]
    assert sorted({text.get_text() for text in whole.texts}) == ["1", "3", "4", "5"]
    steps = np.array([int(label.get_text()) for label in bar.get_yticklabels()])
    expected = np.zeros((32, 16), dtype=int)
    for rate in RATES:
        expected[: math.ceil(32 * rate), : math.ceil(16 * rate)] += 1
    assert (steps[np.asarray(whole.images[0].get_array())] == expected).all()
    assert to_png(figure, dpi=60).startswith(b"\x89PNG")
    assert len(draw_plans(build, [0.5, 0.5]).axes) == 3


def test_parts_of_attention_heads_are_shown():
    shape = TransformerShape(sequence=12, embedding=64, hidden=48, heads=4, layers=1, dropout=0.0)
    build = build_model("transformer", vocabulary=50, shape=shape)
    name = next(name for name, _ in build(1.0).named_parameters() if "linear_q.weight" in name)
    whole = next(axes for axes in draw_plans(build, [1.0, 0.5], name).axes if axes.get_title() == "the global model")
    rows = np.asarray(whole.images[0].get_array())[:, 0]
    assert rows.tolist() == ([1] * 8 + [0] * 8) * 4


def test_no_random_number_is_used_up(build):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    draw_plans(build, RATES)
    assert torch.equal(torch.rand(2), expected)


def test_what_cannot_be_drawn_is_an_error(build):
    with pytest.raises(ConfigError, match="'nothing' is no weight matrix of the model; expected one of"):
        draw_plans(build, RATES, "nothing")
    with pytest.raises(ConfigError, match="no weight matrix to draw"):
        draw_plans(lambda rate: nn.LayerNorm(4), RATES)
    with pytest.raises(ConfigError, match="the rate of at least one client"):
        draw_plans(build, [])

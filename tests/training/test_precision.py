from dataclasses import replace

import pytest
import torch

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.training import TrainOptions, evaluate, train
from heterofl_flwr.training.device import autocast

OPTIONS = TrainOptions(learning_rate=0.05, epochs=2, batch_size=5)
LOWER = replace(OPTIONS, precision="bfloat16")


@pytest.mark.parametrize("norm", ["sbn", "gn"])
def test_bfloat16_trains_close_to_float32(build, split, norm):
    received, full, low = build(norm=norm), build(norm=norm), build(norm=norm)
    expected = train(full, split, OPTIONS, classes=[0, 1, 2, 3], seed=3)
    found = train(low, split, LOWER, classes=[0, 1, 2, 3], seed=3)
    assert found.loss == pytest.approx(expected.loss, rel=0.02)
    assert found.loss != expected.loss
    for name, value in low.named_parameters():
        start, there = received.get_parameter(name), full.get_parameter(name)
        assert value.dtype == torch.float32
        assert (value - there).norm() < 0.2 * (there - start).norm() + 1e-3


def test_the_loss_falls(build, split):
    model = build(norm="gn")
    before = evaluate(model, split).loss
    train(model, split, replace(LOWER, epochs=10), seed=3)
    assert evaluate(model, split).loss < before - 0.2


def test_products_are_in_bfloat16_and_the_loss_in_float32(build, split):
    seen = {}
    model = build(norm="gn")
    model.linear.register_forward_hook(lambda layer, args, out: seen.update(linear=out.dtype))
    train(model, split, LOWER, seed=3)
    assert seen == {"linear": torch.bfloat16}
    gradients = []
    model.linear.weight.register_hook(lambda gradient: gradients.append(gradient.dtype))
    train(model, split, LOWER, seed=3)
    assert set(gradients) == {torch.float32}


def test_it_is_the_same_bit_for_bit_each_time(build, split):
    models = [build(norm="gn"), build(norm="gn")]
    assert train(models[0], split, LOWER, seed=3) == train(models[1], split, LOWER, seed=3)
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_float32_is_no_change():
    cpu = torch.device("cpu")
    with autocast("float32", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast("bfloat16", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_other_precisions_are_refused():
    with pytest.raises(ConfigError, match="precision is 'float16', expected one of float32, bfloat16"):
        TrainOptions(learning_rate=0.1, precision="float16")

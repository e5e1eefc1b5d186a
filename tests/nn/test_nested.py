"""The models inside a client's own: what each computes, what it trains, which a step draws."""

from collections import Counter

import pytest
import torch

from heterofl_flwr.core import Plan
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.nested import Nested, mean_passes
from heterofl_flwr.training import TrainingJob, TrainOptions, train_together
from heterofl_flwr.training.joint_losses import nested_loss

RATES = (1.0, 0.5, 0.25)
BUILDS = {
    "cnn": (build_model("cnn", hidden=(8, 16)), 1),
    "preresnet18": (build_model("preresnet18", hidden=(8, 8, 16, 16)), 3),
    "mlp": (build_model("mlp", inputs=(1, 8, 8), hidden=(16, 8)), 1),
}


@pytest.fixture(params=BUILDS)
def case(request):
    build, channels = BUILDS[request.param]
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return build(1.0).train(), build, x


def nested(model, build, widths="all"):
    return Nested(model, [build(rate) for rate in RATES[1:]], widths)


def smaller_model(model, build, rate):
    smaller = build(rate)
    plan = Plan.of(model, smaller)
    smaller.load_state_dict(plan.extract(dict(model.named_parameters())), strict=False)
    return smaller.train(), plan


def test_each_width_computes_what_its_slice_does(case):
    model, build, x = case
    found = nested(model, build).all_logits(x)
    for logits, rate in zip(found, sorted(RATES), strict=True):
        torch.testing.assert_close(logits, smaller_model(model, build, rate)[0](x), rtol=0, atol=1e-6)
    assert torch.equal(nested(model, build).eval()(x), model.eval()(x))


@pytest.mark.parametrize("widths", ["none", "ordered", "drawn", "sandwich", "all"])
def test_draws_have_the_stated_mean_number_of_passes(widths):
    build, _ = BUILDS["mlp"]
    rates = (1.0, 0.5, 0.25, 0.125)
    models, calls = {rate: build(rate) for rate in rates}, Counter()
    for rate, one in models.items():
        one.forward = lambda x, rate=rate: calls.update([rate]) or x
    model = Nested(models[1.0], [models[rate] for rate in rates[1:]], widths)
    torch.manual_seed(0)
    for _ in range(3000):
        model.all_logits(torch.zeros(1))
    expected = mean_passes(widths, 1.0, rates)
    assert calls.keys() == expected.keys()
    assert {rate: number / 3000 for rate, number in calls.items()} == pytest.approx(expected, abs=0.04)


def test_the_smallest_client_has_no_inner_widths():
    build, _ = BUILDS["mlp"]
    for widths in ("none", "ordered", "drawn", "sandwich", "all"):
        assert len(Nested(build(0.25), [], widths).all_logits(torch.zeros(1, 1, 8, 8))) == 1
        assert mean_passes(widths, 0.25, RATES) == {0.25: 1.0}
    with pytest.raises(ConfigError, match="widths is 'some'; expected one of none, ordered"):
        Nested(torch.nn.Linear(1, 1), [], "some")


def train(model, widths, loss, **options):
    generator = torch.Generator().manual_seed(1)
    split = Split(torch.randn(24, 1, 8, 8, generator=generator), torch.randint(4, (24,), generator=generator))
    job = TrainingJob(model=model, split=split, seed=3, classes=[0, 1, 2, 3], joint_loss=loss)
    return train_together([job], TrainOptions(learning_rate=0.05, epochs=2, **options))[0]


def test_weight_0_trains_as_without_distillation_bit_for_bit():
    build, _ = BUILDS["cnn"]
    torch.manual_seed(0)
    plain = build(1.0)
    distilled = build(1.0)
    distilled.load_state_dict(plain.state_dict())
    alone = train(plain, "none", None)
    beside = train(nested(distilled, build), "all", lambda *both: nested_loss(*both, weight=0.0))
    assert all(map(torch.equal, plain.parameters(), distilled.parameters()))
    assert (alone.loss, alone.accuracy) == (beside.loss, beside.accuracy)

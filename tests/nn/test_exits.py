"""Models inside a model: its early exits, and the narrower ones that a client trains too."""

from collections import Counter

import pytest
import torch

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import Plan
from heterofl_flwr.nn import Exits, build_model, collect_moments, shallow, with_exits, with_static_norm
from heterofl_flwr.nn.inner_widths import Nested, mean_passes

HIDDEN = (4, 6, 6, 8)
MODELS = {"cnn": 1, "preresnet18": 3, "preresnet50": 3}


@pytest.fixture(params=MODELS)
def case(request):
    """Return the function from a rate to a model with exits, and a batch."""
    torch.manual_seed(0)
    images = torch.randn(6, MODELS[request.param], 16, 16)
    return shallow(with_exits(build_model(request.param, hidden=HIDDEN)), "exits.*", images), images


def test_each_depth_computes_what_the_deeper_exit_does(case):
    build, images = case
    full = build(1.0).train()
    expected = full.all_logits(images)
    for number, rate in enumerate((0.25, 0.5, 0.75, 1.0), 1):
        model = build(rate).train()
        plan = Plan.of(full, model)
        model.load_state_dict(plan.extract(dict(full.named_parameters())), strict=False)
        assert len(model.all_logits(images)) == len(expected[:number])
        torch.testing.assert_close(model(images), expected[number - 1])
        torch.testing.assert_close(model.eval()(images), expected[number - 1])
        assert {name for name in full.label_rows if name in plan.axes} == set(model.label_rows)
        assert all(plan.shapes[name][0] == 10 for name in model.label_rows)


def test_an_ensemble_is_the_mean_of_all_exits_in_evaluation(case):
    build, images = case
    model = build(1.0).eval()
    expected = torch.stack(model.all_logits(images)).mean(0)
    model.ensemble = True
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.train()(images), model.all_logits(images)[-1])


def test_all_exits_are_measured_for_static_norm(case):
    build, images = case
    model = build(1.0)
    moments = collect_moments(model, [images])
    assert all(layer.count for layer in moments.layers.values())
    static = with_static_norm(model, moments)
    torch.testing.assert_close(static(images)[:2], static(images[:2]), rtol=1e-4, atol=1e-5)


def test_earlier_heads_are_untrained_with_the_deepest_only():
    model = with_exits(build_model("cnn", hidden=HIDDEN), deepest_only=True)(1.0)
    model.train()(torch.zeros(2, 1, 16, 16)).sum().backward()
    without = {name for name, own in model.named_parameters() if own.grad is None}
    assert without == {f"exits.{number}.head.linear.{own}" for number in range(3) for own in ("weight", "bias")}
    assert set(model.untrained) == without
    assert with_exits(build_model("cnn", hidden=HIDDEN))(1.0).untrained == ()


def test_what_the_deepest_exit_shares_with_an_earlier_head_is_trained():
    """The head that all exits share was averaged only over the clients of the first exit."""
    head, own = torch.nn.Linear(4, 3), torch.nn.Linear(4, 4)
    heads = (head, torch.nn.Sequential(own, torch.nn.Linear(4, 3)), head)
    model = Exits(zip((torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), own), heads, strict=True), deepest_only=True)
    model.train()(torch.zeros(2, 4)).sum().backward()
    assert {name for name, own in model.named_parameters() if own.grad is None} == set(model.untrained)
    assert set(model.untrained) == {"exits.1.head.1.weight", "exits.1.head.1.bias"}


def test_a_model_without_a_rule_is_refused():
    with pytest.raises(ConfigError, match=r"after which stages a MLP can end: add a rule with"):
        with_exits(build_model("mlp"))(1.0)


def test_a_model_without_stages_is_refused():
    with pytest.raises(ConfigError, match=r"Exits has no stages; expected a list of pairs \(stage, head\)"):
        Exits([])


RATES = (1.0, 0.5, 0.25)
BUILDS = {
    "cnn": (build_model("cnn", hidden=(8, 16)), 1),
    "preresnet18": (build_model("preresnet18", hidden=(8, 8, 16, 16)), 3),
    "mlp": (build_model("mlp", inputs=(1, 8, 8), hidden=(16, 8)), 1),
}


@pytest.fixture(params=BUILDS)
def nested_case(request):
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


def test_each_width_computes_what_its_slice_does(nested_case):
    model, build, x = nested_case
    next(model.children()).requires_grad_(False)  # as a client may freeze a part of its model
    found = nested(model, build).all_logits(x)
    for logits, rate in zip(found, sorted(RATES), strict=True):
        torch.testing.assert_close(logits, smaller_model(model, build, rate)[0](x), rtol=0, atol=1e-6)
    assert torch.equal(nested(model, build).eval()(x), model.eval()(x))


def test_all_widths_get_the_same_inputs():
    def build(rate):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.LeakyReLU(0.5, inplace=True), torch.nn.Linear(3, 2))

    first, *others = nested(build(1.0), build).all_logits(torch.full((1, 3), -1.0))
    assert all(torch.equal(logits, first) for logits in others)


@pytest.mark.parametrize("widths", ["none", "ordered", "drawn", "sandwich", "all"])
def test_draws_have_the_stated_mean_number_of_passes(widths):
    build, _ = BUILDS["mlp"]
    rates = (1.0, 0.5, 0.25, 0.125)
    models, calls = {rate: build(rate) for rate in rates}, Counter()
    for rate, one in models.items():
        one.forward = lambda x, rate=rate: calls.update([rate]) or x
    model = Nested(models[1.0], [models[rate] for rate in rates[1:]], widths)
    torch.manual_seed(0)
    for _ in range(1000):
        model.all_logits(torch.zeros(1))
    expected = mean_passes(widths, 1.0, rates)
    assert calls.keys() == expected.keys()
    assert {rate: number / 1000 for rate, number in calls.items()} == pytest.approx(expected, abs=0.05)


def test_the_smallest_client_has_no_inner_widths():
    build, _ = BUILDS["mlp"]
    for widths in ("none", "ordered", "drawn", "sandwich", "all"):
        assert len(Nested(build(0.25), [], widths).all_logits(torch.zeros(1, 1, 8, 8))) == 1
        assert mean_passes(widths, 0.25, RATES) == {0.25: 1.0}

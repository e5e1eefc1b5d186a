"""Models with early exits: what they compute, hold and train."""

import pytest
import torch

from heterofl_flwr.core import Plan
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn import build_model, collect_moments, shallow, with_exits, with_static_norm

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
    assert model.untrained == ("exits.0.head.*", "exits.1.head.*", "exits.2.head.*")
    model.train()(torch.zeros(2, 1, 16, 16)).sum().backward()
    without = {name for name, own in model.named_parameters() if own.grad is None}
    assert without == {f"exits.{number}.head.linear.{own}" for number in range(3) for own in ("weight", "bias")}
    assert with_exits(build_model("cnn", hidden=HIDDEN))(1.0).untrained == ()


def test_a_model_without_a_rule_is_refused():
    with pytest.raises(ConfigError, match=r"after which stages a MLP can end: add a rule with"):
        with_exits(build_model("mlp"))(1.0)

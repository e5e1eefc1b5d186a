"""The Scaler, norms, and ordered dropout."""

import pytest
import torch

from heterofl_flwr.core import Plan
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.layers import OrderedDropout, Scaler, make_norm, make_scaler
from heterofl_flwr.training import TrainingJob, TrainOptions, train_together
from heterofl_flwr.training.engines.cohort import find_obstacle


def test_divides_by_its_rate_in_training_only():
    scaler = Scaler(0.25)
    x = torch.tensor([1.0, -2.0])
    torch.testing.assert_close(scaler.train()(x), torch.tensor([4.0, -8.0]), rtol=0, atol=0)
    assert scaler.eval()(x) is x


def test_its_rate_is_the_models_over_the_global_one():
    scaler = make_scaler(0.1, 0.3)
    assert isinstance(scaler, Scaler)
    assert scaler.rate == 1 / 3
    assert repr(scaler) == "Scaler(rate=0.333333)"


def test_a_model_larger_than_the_global_one_is_refused():
    with pytest.raises(ConfigError, match=r"0\.5 is larger than the global model of rate 0\.25"):
        make_scaler(0.5, 0.25)


@pytest.mark.parametrize(
    ("name", "norm"), [*(("cnn", norm) for norm in ("sbn", "in", "gn", "ln")), ("preresnet18", "sbn")]
)
def test_before_a_norm_it_changes_nothing(small, inputs, name, norm):
    """Exactly so but for the norms' epsilon, which is made negligible here."""
    with_scaler, without = _twins(small, name, norm=norm)
    for module in [*with_scaler.modules(), *without.modules()]:
        if hasattr(module, "eps"):
            module.eps = 1e-15
    x = inputs(name).double()
    torch.testing.assert_close(with_scaler(x), without(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["cnn", "preresnet18"])
def test_without_norm_it_changes_the_output(small, inputs, name):
    with_scaler, without = _twins(small, name, norm="none")
    x = inputs(name).double()
    assert not torch.allclose(with_scaler(x), without(x), rtol=0.1)
    torch.testing.assert_close(with_scaler.eval()(x), without.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("cnn", 2),  # after each convolution
        ("preresnet18", 2 * 5 + 1),  # before each norm: two a block, and the last
        ("preresnet50", 3 * (3 + 4 + 6 + 3) + 1),
        ("transformer", 2 + 2 * (4 + 2) + 1),  # embeddings; q, k, v, o, linear1, linear2 a layer; decoder.linear1
    ],
)
def test_models_use_it_at_all_its_places(small, inputs, name, places):
    model, calls = small(name)(0.5), []
    for module in model.modules():
        if isinstance(module, Scaler):
            module.register_forward_hook(lambda *_: calls.append(1))
    model(inputs(name))
    assert len(calls) == places


def _twins(small, name, **options):
    with_scaler = small(name, scaler=True, **options)(0.25).double().train()
    without = small(name, scaler=False, **options)(0.25).double().train()
    without.load_state_dict(with_scaler.state_dict())
    return with_scaler, without


@pytest.mark.parametrize(
    ("kind", "groups"), [("in", {4: 4, 5: 5, 64: 64}), ("gn", {4: 4, 5: 1, 6: 2, 64: 4}), ("ln", {4: 1, 5: 1, 64: 1})]
)
def test_group_norms_have_the_papers_groups(kind, groups):
    norms = {channels: make_norm(kind, channels) for channels in groups}
    assert {norm.num_channels: norm.num_groups for norm in norms.values()} == groups


def test_an_unknown_norm_names_the_known_ones():
    with pytest.raises(ConfigError, match="'bn' is no norm; expected one of none, in, gn, ln, sbn"):
        make_norm("bn", 4)


RATES = (1.0, 0.5, 0.25)
BUILDS = {
    "cnn": (build_model("cnn", hidden=(8, 16)), 1),
    "preresnet18": (build_model("preresnet18", hidden=(8, 8, 16, 16)), 3),
    "mlp": (build_model("mlp", inputs=(1, 8, 8), hidden=(16, 8)), 1),
}


@pytest.fixture(params=BUILDS)
def case(request):
    build, channels = BUILDS[request.param]
    model = build(1.0)
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return model, OrderedDropout(model, [build(rate) for rate in RATES[1:]]), build, x


def smaller_model(model, build, rate):
    smaller = build(rate)
    plan = Plan.of(model, smaller)
    smaller.load_state_dict(plan.extract(dict(model.named_parameters())), strict=False)
    return smaller.train(), plan


def test_each_width_computes_what_its_slice_does(case):
    model, ordered, build, x = case
    expected = {rate: smaller_model(model, build, rate)[0](x) for rate in RATES}
    found = set()
    torch.manual_seed(0)
    for _ in range(40):
        logits = ordered.train()(x)
        (rate,) = [rate for rate in RATES if torch.allclose(logits, expected[rate], atol=1e-6)]
        found.add(rate)
    assert found == set(RATES)
    assert torch.equal(ordered.eval()(x), model.eval()(x))


def test_a_smaller_width_trains_its_own_entries_alone(case):
    model, ordered, build, x = case
    seed = next(number for number in range(100) if torch.manual_seed(number) and int(torch.randint(3, ())) == 2)
    torch.manual_seed(seed)
    ordered.train()(x).square().sum().backward()
    smaller, plan = smaller_model(model, build, 0.25)
    smaller(x).square().sum().backward()
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in smaller.named_parameters():
        expected[name][tuple(slice(axis.kept) for axis in plan.axes[name])] = parameter.grad
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_clients_do_not_train_together():
    build, _ = BUILDS["cnn"]
    split = Split(torch.randn(24, 1, 8, 8), torch.zeros(24, dtype=torch.int64))
    jobs = [
        TrainingJob(model=OrderedDropout(build(1.0), [build(0.5)]), split=split, seed=number) for number in range(2)
    ]
    assert find_obstacle(jobs[0].model) == "layer (the model itself) draws random numbers"
    results = train_together(jobs, TrainOptions(learning_rate=0.05, epochs=1))
    assert [result.steps for result in results] == [3, 3]

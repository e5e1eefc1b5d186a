"""The Scaler, norms, and ordered dropout."""

import pytest
import torch
from torch import nn

from heterofl_flwr.core import Plan
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.layers import OrderedDropout, Scaler, make_norm, make_scaler
from heterofl_flwr.training import TrainingJob, TrainOptions, train, train_together
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


@pytest.mark.parametrize("name", ["cnn", "preresnet18", "preresnet50"])
@pytest.mark.parametrize("norm", ["sbn", "in", "gn", "ln"])
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
    ("kind", "groups"),
    [("in", {4: 4, 5: 5, 64: 64}), ("gn", {4: 4, 5: 1, 6: 2, 64: 4}), ("ln", {4: 1, 5: 1, 64: 1})],
)
def test_group_norms_have_the_papers_groups(kind, groups):
    for channels, expected in groups.items():
        norm = make_norm(kind, channels)
        assert isinstance(norm, nn.GroupNorm)
        assert (norm.num_groups, norm.num_channels) == (expected, channels)


def test_an_unknown_norm_names_the_known_ones():
    with pytest.raises(ConfigError, match="'bn' is no norm; expected one of none, in, gn, ln, sbn"):
        make_norm("bn", 4)


RATES = (1.0, 0.5, 0.25)
BUILDS = {
    "cnn": build_model("cnn", hidden=(8, 16)),
    "preresnet18": build_model("preresnet18", hidden=(8, 8, 16, 16)),
    "mlp": build_model("mlp", inputs=(1, 8, 8), hidden=(16, 8)),
}


def images(channels, number=24):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(number, channels, 8, 8, generator=draw), torch.randint(10, (number,), generator=draw)


@pytest.fixture(params=BUILDS)
def case(request):
    build = BUILDS[request.param]
    model = build(1.0)
    return build, model, OrderedDropout(model, [build(rate) for rate in RATES[1:]])


def channels_of(build):
    return 3 if "PreResNet" in type(build(1.0)).__name__ else 1


def test_each_width_computes_what_its_slice_does(case):
    build, model, ordered = case
    x, _ = images(channels_of(build), 4)
    expected = {}
    for rate in RATES:
        smaller = build(rate)
        plan = Plan.of(model, smaller)
        smaller.load_state_dict(plan.extract(dict(model.named_parameters())), strict=False)
        expected[rate] = smaller.train()(x)
    found = set()
    torch.manual_seed(0)
    for _ in range(40):
        logits = ordered.train()(x)
        (rate,) = [rate for rate in RATES if torch.allclose(logits, expected[rate], atol=1e-6)]
        found.add(rate)
    assert found == set(RATES)


def test_in_evaluation_it_is_the_model_itself(case):
    build, model, ordered = case
    x, _ = images(channels_of(build), 4)
    assert torch.equal(ordered.eval()(x), model.eval()(x))


def test_a_smaller_width_leaves_all_other_entries_without_gradient(case):
    build, model, ordered = case
    x, y = images(channels_of(build), 4)
    seed = next(number for number in range(100) if torch.manual_seed(number) and int(torch.randint(3, ())) == 2)
    torch.manual_seed(seed)
    torch.nn.functional.cross_entropy(ordered.train()(x), y).backward()
    plan = Plan.of(model, build(0.25))
    for name, parameter in model.named_parameters():
        inside = torch.zeros(parameter.shape, dtype=torch.bool)
        inside[tuple(slice(axis.kept) for axis in plan.axes[name])] = True
        assert (parameter.grad[~inside] == 0).all()
    assert any((parameter.grad != 0).any() for parameter in model.parameters())


def test_training_is_a_plain_loop_over_drawn_widths():
    build = BUILDS["cnn"]
    torch.manual_seed(1)
    model = build(1.0)
    twin = build(1.0)
    twin.load_state_dict(model.state_dict())
    x, y = images(1)
    options = TrainOptions(learning_rate=0.1, epochs=2, batch_size=8, clip=None)
    train(OrderedDropout(model, [build(rate) for rate in RATES[1:]]), Split(x, y), options, seed=5)

    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(derive(5, "batches"))
    torch.manual_seed(derive(5, "model"))
    for _ in range(2):
        for rows in torch.randperm(24, generator=order).split(8):
            rate = RATES[int(torch.randint(3, ()))]
            smaller = build_quietly(build, rate)
            plan = Plan.of(twin, smaller)
            smaller.load_state_dict(plan.extract(dict(twin.named_parameters())), strict=False)
            torch.nn.functional.cross_entropy(smaller.train()(x[rows]), y[rows]).backward()
            optimizer.zero_grad()
            for name, parameter in twin.named_parameters():
                parameter.grad = torch.zeros_like(parameter)
                place = tuple(slice(axis.kept) for axis in plan.axes[name])
                parameter.grad[place] = dict(smaller.named_parameters())[name].grad
            optimizer.step()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def build_quietly(build, rate):
    with torch.random.fork_rng():
        return build(rate)


def test_clients_do_not_train_together():
    build = BUILDS["cnn"]
    x, y = images(1)
    works = [
        TrainingJob(model=OrderedDropout(build(1.0), [build(0.5)]), split=Split(x, y), seed=number)
        for number in range(2)
    ]
    assert find_obstacle(works[0].model) == "layer (the model itself) draws random numbers"
    results = train_together(works, TrainOptions(learning_rate=0.05, epochs=1))
    assert [result.steps for result in results] == [3, 3]

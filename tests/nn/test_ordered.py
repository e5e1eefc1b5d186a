"""Ordered dropout: what is computed, what is trained, and which engine trains it."""

import pytest
import torch

from heterofl_flwr.core import Plan
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.layers import OrderedDropout
from heterofl_flwr.training import TrainingJob, TrainOptions, train, train_together
from heterofl_flwr.training.engines.cohort import obstacle

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
    assert obstacle(works[0].model) == "layer (the model itself) draws random numbers"
    results = train_together(works, TrainOptions(learning_rate=0.05, epochs=1))
    assert [result.steps for result in results] == [3, 3]

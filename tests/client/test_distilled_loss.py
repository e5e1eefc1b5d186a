"""The loss of a user's own loop in which the smaller models inside a client's learn too."""

import pytest
import torch
from torch.nn import functional as F

from heterofl_flwr import HeteroFL, Plan
from heterofl_flwr.classic import client as classic
from heterofl_flwr.client import distilled_loss, submodel
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.transport import messages
from tests.client.test_client import instruction
from tests.federation.tiny import build

pytestmark = pytest.mark.usefixtures("identity")

RATES = [1.0, 0.5, 0.25]
PRESENT = [0, 2, 3]


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, generator=generator), torch.tensor([0, 2, 3, 0, 2, 3, 0])


def by_message(rate):
    return submodel(instruction(rate, rates=[own for own in RATES if own <= rate]), build)


def by_classic_instruction(rate):
    config = {"rate": rate, "seed": 0, "server-round": 1, "partition": 0, "heterofl-schema": messages.SCHEMA}
    config["rates"] = ",".join(str(own) for own in RATES if own <= rate)
    return classic.submodel(classic.parameters_of(build(rate)), config, build)


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize("receive", [by_message, by_classic_instruction])
def test_it_equals_training_each_width_on_its_own(receive):
    torch.manual_seed(0)
    model, (x, y) = receive(1.0), batch()
    options = {"labels": PRESENT, "label_share": 0.25, "weight": 0.7, "temperature": 2.0}
    found = gradients(model, distilled_loss(model, (x, y), F.cross_entropy, **options))

    def masked(logits):
        return logits * torch.tensor([1.0, 0.0, 1.0, 1.0])

    teacher = (masked(model(x)) / 2).softmax(1).detach()
    expected = gradients(model, F.cross_entropy(masked(model(x)), y))
    for rate in RATES[1:]:
        inner = build(rate)
        plan = Plan.of(model, inner)
        inner.load_state_dict(plan.extract(dict(model.named_parameters())))
        logits = masked(inner(x))
        apart = (teacher * (teacher.log() - (logits / 2).log_softmax(1))).sum(1).mean() * 4
        loss = 0.7 * (0.25 * F.cross_entropy(logits, y) + 0.75 * apart)
        for name, gradient in gradients(inner, loss).items():
            expected[name][tuple(slice(size) for size in gradient.shape)] += gradient
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize(("rate", "options"), [(1.0, {"weight": 0.0}), (0.25, {})])
def test_without_inner_widths_it_is_the_criterion(rate, options):
    model, (x, y) = by_message(rate), batch()
    loss = distilled_loss(model, (x, y), F.cross_entropy, **options)
    assert torch.equal(loss, F.cross_entropy(model(x), y))


def test_inputs_may_be_named_or_several():
    model, (x, y) = by_message(1.0), batch()
    losses = [distilled_loss(model, (given, y), F.cross_entropy) for given in (x, (x,), {"x": x})]
    assert losses[0] == losses[1] == losses[2]


def test_a_wrapped_model_is_refused():
    with pytest.raises(ConfigError, match="knows no smaller models inside this Sequential: give it what submodel"):
        distilled_loss(torch.nn.Sequential(by_message(1.0)), batch(), F.cross_entropy)


def test_instructions_name_the_rates_inside_unless_slices_move():
    strategy = HeteroFL(build, "a1-c1-e1")
    assert strategy.federation.architecture.nested_rates(1.0) == [1.0, 0.25, 0.0625]
    assert strategy.federation.architecture.nested_rates(0.25) == [0.25, 0.0625]
    assert HeteroFL(build, "a1-c1", slice_rule="rolling").federation.architecture.nested_rates(1.0) == [1.0]

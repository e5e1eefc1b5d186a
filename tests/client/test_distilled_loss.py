"""The loss of a user's own loop in which the smaller models inside a client's learn too."""

import pytest
import torch
from torch.nn import functional as F

from heterofl_flwr import Plan, classic
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.transport import messages
from tests.client.test_client import instruction
from tests.federation.tiny import build, node_context

pytestmark = pytest.mark.usefixtures("identity")

RATES = [1.0, 0.5, 0.25]
PRESENT = [0, 2, 3]


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, generator=generator), torch.tensor([0, 2, 3, 0, 2, 3, 0])


def by_message(rate, **values):
    message = instruction(rate, rates=[inner for inner in RATES if inner <= rate], **values)
    return Task(message, node_context(), build)


def by_classic_instruction(rate):
    config = {"rate": rate, "seed": 0, "server-round": 1, "partition": 0, "heterofl-schema": messages.SCHEMA}
    config["rates"] = ",".join(str(own) for own in RATES if own <= rate)
    return classic.Task(classic.parameters_of(build(rate)), config, node_context(), build)


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize("receive", [by_message, by_classic_instruction])
def test_it_equals_training_each_width_on_its_own(receive):
    torch.manual_seed(0)
    task, (x, y) = receive(1.0), batch()
    model = task.model()
    options = {"labels": PRESENT, "label_share": 0.25, "weight": 0.7, "temperature": 2.0}
    found = gradients(model, task.loss(model, (x, y), F.cross_entropy, **options))

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
    task, (x, y) = by_message(rate), batch()
    model = task.model()
    loss = task.loss(model, (x, y), F.cross_entropy, **options)
    assert torch.equal(loss, F.cross_entropy(model(x), y))


def test_inputs_may_be_named_or_several():
    task, (x, y) = by_message(1.0), batch()
    model = task.model()
    losses = [task.loss(model, (given, y), F.cross_entropy) for given in (x, (x,), {"x": x})]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("output", "form"),
    [(lambda logits: {"logits": logits}, "a dict"), (lambda logits: logits[..., None], r"\(7, 4, 1\)")],
)
def test_an_output_that_is_no_logits_is_named(output, form):
    def wrapped(rate):
        model = build(rate)
        model.register_forward_hook(lambda layer, inputs, logits: output(logits))
        return model

    task = Task(instruction(1.0), node_context(), wrapped)
    with pytest.raises(ConfigError, match=f"the output of Tiny is .*{form}; expected logits"):
        task.loss(task.model(), batch(), F.cross_entropy, weight=0.0)


def test_it_has_the_penalty_of_fedprox():
    task, (x, y) = by_message(0.25, proximal_mu=0.5), batch()
    model = task.model()
    received = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), 1):
            parameter += number
    loss = task.loss(model, (x, y), F.cross_entropy)
    expected = F.cross_entropy(model(x), y) + 0.25 * sum(
        number**2 * old.numel() for number, old in enumerate(received, 1)
    )
    torch.testing.assert_close(loss, expected)

"""FIARSE's masks of single entries: the gradient of the paper, fixed thresholds, and the mean over masks."""

import pytest
import torch
from torch import nn

from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.chain import Chain
from heterofl_flwr.stages.server_stage import RoundContext, Update
from simulations.entry_masks import EntryMasked, LargestEntries, MaskedMean, cifar10


def test_the_gradient_is_that_of_a_sigmoid_like_step_at_the_threshold():
    weight = torch.tensor([0.5, -2.0, 1.0, -0.9], requires_grad=True)
    kept = LargestEntries.apply(weight, torch.tensor(0.9))
    assert kept.tolist() == pytest.approx([0.0, -2.0, 1.0, -0.9])
    kept.backward(torch.tensor([1.0, 1.0, 2.0, 1.0]))
    expected = [0, 1 + 3.6 / 2.9**2, 2 * (1 + 1.8 / 1.9**2), 1.5]
    assert weight.grad.tolist() == pytest.approx(expected)


def test_a_layer_uses_its_largest_weights_and_keeps_its_threshold_while_it_trains():
    model = EntryMasked(nn.Linear(4, 1, bias=False), 0.5)
    with torch.no_grad():
        model.model.weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    assert model(torch.eye(4)).flatten().tolist() == [0, 0, 3, -4]
    with torch.no_grad():
        model.model.weight.copy_(torch.tensor([[9.0, -2.0, 2.5, -4.0]]))
    assert model(torch.eye(4)).flatten().tolist() == [9, 0, 0, -4]  # the threshold is still 3
    with torch.no_grad():
        model.model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.1]]))
    assert model.eval()(torch.eye(4)).flatten().tolist() == [1, -2, 0, 0]


def test_levels_have_the_same_parameters_and_the_names_of_rows():
    small, large = cifar10(0.125), cifar10(1.0)
    assert {name: p.shape for name, p in small.named_parameters()} == {n: p.shape for n, p in large.named_parameters()}
    assert set(small.label_rows) <= dict(small.named_parameters()).keys()
    assert small.share == 0.125**2


@pytest.mark.parametrize("rows", [(), ("linear.weight",)])
def test_the_mean_equals_a_loop_over_entries(rows):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    state = {"linear.weight": draw(4, 6), "linear.bias": draw(4)}
    plan = Plan.between(state, {name: tuple(tensor.shape) for name, tensor in state.items()})
    replies = [(rate, {name: draw(*tensor.shape) for name, tensor in state.items()}) for rate in (1.0, 0.5, 0.5, 0.25)]
    labels = [0, 1, 3]
    chain = Chain([MaskedMean()])
    for server_round in (1, 2):
        chain.open(RoundContext(server_round=server_round, state=state, rows=rows))
        for rate, tensors in replies:
            chain.add(Update(plan=plan, tensors=tensors, rate=rate, labels=labels if rows else None))
        new = chain.close()
        largest = sorted(state["linear.weight"].abs().flatten().tolist(), reverse=True)
        for row in range(4):
            for column in range(6):
                old = state["linear.weight"][row, column].item()
                values = [
                    tensors["linear.weight"][row, column].item()
                    for rate, tensors in replies
                    if abs(old) >= largest[max(1, int(24 * rate**2)) - 1] and not (rows and row not in labels)
                ]
                expected = sum(values) / len(values) if values else old
                assert new["linear.weight"][row, column].item() == pytest.approx(expected, abs=1e-5)
        torch.testing.assert_close(new["linear.bias"], sum(tensors["linear.bias"] for _, tensors in replies) / 4)
        state = new

import pytest
import torch
from torch import nn

from heterofl_flwr.training.engines.wide_layers import IncompatibleError, wide_twin

CLIENTS = 3


def check_twin(models: list[nn.Module], shape: tuple[int, ...]) -> None:
    """Compare outputs and gradients of the models, in float64, with those of their twin."""
    models = [model.double() for model in models]
    twin = wide_twin(models[0], len(models))
    own = [dict(model.named_parameters()) for model in models]
    with torch.no_grad():
        for name, wide in twin.named_parameters():
            wide.copy_(torch.stack([parameters[name] for parameters in own]).reshape(wide.shape))
    inputs = [torch.randn(4, *shape, dtype=torch.float64, requires_grad=True) for _ in models]
    outputs = [model(x) for model, x in zip(models, inputs, strict=True)]
    together = twin(torch.cat(inputs, 1))
    torch.testing.assert_close(together, torch.cat(outputs, 1), rtol=1e-10, atol=1e-12)
    sum(output.square().sum() for output in outputs).backward()
    together.square().sum().backward()
    for name, wide in twin.named_parameters():
        alone = torch.stack([parameters[name].grad for parameters in own])
        torch.testing.assert_close(wide.grad.reshape(alone.shape), alone, rtol=1e-9, atol=1e-10)


def drawn(build) -> nn.Module:
    """Return a layer whose parameters are all drawn: those of norms would be the same for all clients."""
    layer = build()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
        (lambda: nn.Conv2d(1, 3, 3, padding=1, bias=False), (1, 5, 5)),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular"), (4, 5, 5)),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), (4, 5)),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False, affine=False), (4, 3, 3)),
        (lambda: nn.BatchNorm3d(4, track_running_stats=False, eps=0.1), (4, 2, 2, 2)),
        (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
        (lambda: nn.GroupNorm(1, 4, affine=False), (4,)),
        (lambda: nn.Linear(4, 5, bias=False), (4,)),
    ],
)
def test_wide_layers_equal_those_of_each_client(build, shape):
    torch.manual_seed(0)
    check_twin([drawn(build) for _ in range(CLIENTS)], shape)


class Shares(nn.Module):
    """Uses one layer twice, and reaches it through a list that is no ModuleList as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.first
        self.plain_list = [self.first]
        self.last = nn.Linear(2 * 9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.again, *self.plain_list):
            x = torch.relu(layer(x))
        return self.last(nn.functional.adaptive_max_pool2d(x, 3).flatten(1))


def test_a_layer_used_at_several_places_stays_one():
    torch.manual_seed(0)
    check_twin([Shares() for _ in range(CLIENTS)], (2, 6, 6))
    twin = wide_twin(Shares(), CLIENTS)
    assert twin.first is twin.again is twin.plain_list[0]
    model = Shares().requires_grad_(False)
    twin = wide_twin(model, CLIENTS)
    assert (model.first.groups, twin.first.groups) == (1, 3)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert {id(value) for value in model.parameters()}.isdisjoint(map(id, twin.parameters()))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Embedding(3, 2), r"layer \(the model itself\) of type Embedding has no wide twin"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(3, 2)), "layer 1 of type LSTM has no wide twin"),
    ],
)
def test_a_layer_that_cannot_be_wide_is_named(model, message):
    with pytest.raises(IncompatibleError, match=message):
        wide_twin(model, 2)


def test_a_subclass_may_compute_something_else():
    with pytest.raises(IncompatibleError, match="of type Halved has no wide twin"):
        wide_twin(type("Halved", (nn.Linear,), {})(4, 4), 2)

"""Channels-last convolutions: where they are used, and models that cannot run with them."""

from contextlib import suppress
from functools import partial

import pytest
import torch
from torch import nn

from heterofl_flwr.data import Split
from heterofl_flwr.nn import collect_moments, memory_format
from heterofl_flwr.nn.memory_format import in_channels_last, suits_channels_last
from heterofl_flwr.training import TrainingJob, TrainOptions, evaluate, train_together

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(6, 3, 4, 4, generator=GENERATOR)
SPLIT = Split(IMAGES, torch.tensor([0, 1, 0, 1, 1, 0]))


class WithView(nn.Module):
    """Net whose ``view`` needs channels-first activations, after dropout, running statistics and a changed input."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 2)
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm2d(4, momentum=None)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.norm(self.drop(self.conv(x.mul_(2))))
        return self.linear(x.view(len(x), -1))


class Square(torch.autograd.Function):
    """The square, with a gradient whose ``view`` needs channels-first activations."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return (2 * x.view(-1) * gradient.contiguous().view(-1)).view(x.shape)


class WithViewOfGradient(WithView):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(Square.apply(self.norm(self.drop(self.conv(x)))).flatten(1))


def test_weights_are_channels_last_inside_alone():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 2))
    before = {name: (value.data_ptr(), value.stride(), value.clone()) for name, value in model.state_dict().items()}

    @torch.no_grad()
    def compute() -> None:
        model(torch.zeros(2, 1, 8, 8))
        # With one input channel both layouts pass for channels last; the output follows the strides.
        assert model[0].weight.stride() == (9, 1, 3, 1)
        assert model[:2](torch.zeros(2, 1, 8, 8)).is_contiguous(memory_format=torch.channels_last)
        model[1].weight[2, 3, 1, 0] = 7
        raise KeyError

    with suppress(KeyError):
        in_channels_last(model, compute)
    before["1.weight"][2][2, 3, 1, 0] = 7
    for name, value in model.state_dict().items():
        address, stride, expected = before[name]
        assert (value.data_ptr(), value.stride()) == (address, stride)
        assert torch.equal(value, expected)
    assert not model._forward_pre_hooks


def trained(kind=WithView):
    model = kind()
    options = TrainOptions(learning_rate=0.1, batch_size=3, epochs=2)
    (result,) = train_together([TrainingJob(model=model, split=SPLIT, seed=1)], options)
    return result, model.calls, *model.state_dict().values()


def evaluated():
    model = WithView()
    return evaluate(model, SPLIT, batch_size=3), model.calls, *model.state_dict().values()


def measured():
    model = WithView()
    (moments,) = collect_moments(model, IMAGES.clone().split(3)).layers.values()
    return moments.count, model.calls, moments.first_sum, moments.second_sum, *model.state_dict().values()


@pytest.mark.parametrize("compute", [trained, partial(trained, WithViewOfGradient), evaluated, measured])
def test_a_model_that_needs_channels_first_computes_as_with_them_from_the_start(compute, monkeypatch):
    found = compute()
    monkeypatch.setattr(memory_format, "suits_channels_last", lambda model: False)
    for one, other in zip(found, compute(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0) if torch.is_tensor(one) else None
        assert torch.is_tensor(one) or one == other


def test_an_error_after_the_first_step_is_raised():
    model, calls = nn.Conv2d(3, 4, 3), []

    def compute() -> None:
        calls.extend(model(IMAGES) for _ in range(2))
        raise RuntimeError("of a later step")

    with pytest.raises(RuntimeError, match="later step"):
        in_channels_last(model, compute)
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_scripted_models_and_instance_norm_stay_channels_first():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))
    for model in (scripted, norm):
        assert in_channels_last(model, lambda model=model: model(IMAGES)).is_contiguous()


def test_thin_1x1_convolutions_stay_as_they_are_on_avx2(monkeypatch):
    """Their backward pass corrupts the process's memory there."""
    thin, wide = (nn.Sequential(nn.Conv2d(3, size, 3), nn.Conv2d(size, 9, 1, stride=2)) for size in (7, 8))
    for processor, expected in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda processor=processor: processor)
        assert [suits_channels_last(thin), suits_channels_last(wide)] == [expected, True]

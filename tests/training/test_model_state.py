import pytest
import torch
from torch import nn

from heterofl_flwr.nn.execution import channels_last
from heterofl_flwr.training.device import device_of, seeded


def test_convolutions_are_channels_last_inside_and_back_in_place_after():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 2))
    before = {name: (value.data_ptr(), value.stride(), value.clone()) for name, value in model.state_dict().items()}
    with channels_last(model):
        # With one input channel both layouts pass for channels last; the output follows the strides.
        assert model[0].weight.stride() == (9, 1, 3, 1)
        assert model[:2](torch.zeros(2, 1, 8, 8)).is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            model[1].weight[2, 3, 1, 0] = 7
    before["1.weight"][2][2, 3, 1, 0] = 7
    for name, value in model.state_dict().items():
        address, stride, expected = before[name]
        assert (value.data_ptr(), value.stride()) == (address, stride)
        assert torch.equal(value, expected)


def test_the_layout_comes_back_after_an_error():
    model = nn.Conv2d(2, 4, 3)
    with pytest.raises(KeyError), channels_last(model):
        raise KeyError
    assert model.weight.is_contiguous()


def test_a_layout_that_the_user_chose_is_left_alone():
    model = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    with channels_last(model):
        pass
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_seeded_draws_are_the_same_and_leave_no_trace():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(3, torch.device("cpu")):
            draws.append(torch.rand(2))
    assert torch.equal(*draws)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_without_parameters_is_on_the_cpu():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")

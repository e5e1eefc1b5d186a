"""New models: with initial values or, where these will be loaded, without."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from heterofl_flwr.client.load_model import load_parameters
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import width
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.nn.build import called_with_rate, new_model
from heterofl_flwr.nn.models import MODELS, build_model

OPTIONS = {"mlp": {"hidden": (8, 8)}, "lenet": {}, "transformer": {"vocabulary": 50}}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_built_to_be_loaded_equals_one_with_initial_values(name):
    build = build_model(name, **OPTIONS.get(name, {"hidden": (4, 4, 4, 4)}))
    full = new_model(build, 1.0)
    state = {key: parameter.detach() for key, parameter in exchanged_parameters(full).items()}
    before = torch.get_rng_state()
    loaded = new_model(build, 1.0, to_load=True)
    load_parameters(loaded, state)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.state_dict().keys() == full.state_dict().keys()
    assert all(torch.equal(tensor, full.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert loaded.training


def test_a_function_that_fails_at_a_rate_is_named_with_it():
    """``width(8, rate)`` is 1 at e, which the groups do not divide."""
    build = called_with_rate(lambda rate: nn.Conv2d(4, width(8, rate), 1, groups=4))
    with pytest.raises(ConfigError, match=r"build\(0\.0625\) fails \(ValueError: .* or width\(64, rate, heads\)"):
        build(0.0625)
    assert called_with_rate(lambda rate: nn.Conv2d(4, width(8, rate, 4), 1, groups=4))(0.0625).out_channels == 4


def test_a_users_model_has_what_its_buffers_depend_on():
    class Masked(nn.Module):
        def __init__(self, rate):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("mask", self.linear.weight > 0)

    torch.manual_seed(0)
    full = new_model(Masked, 1.0)
    assert torch.equal(new_model(Masked, 1.0, to_load=True).mask, full.mask)


def test_values_that_will_be_loaded_are_not_drawn():
    drawn = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            drawn.append(func)
            return func(*args, **(kwargs or {}))

    for to_load in (False, True):
        drawn.clear()
        with Watch():
            new_model(build_model("cnn", hidden=(4,)), 1.0, to_load=to_load)
        assert (nn.init.kaiming_uniform_ in drawn) is not to_load

import math

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.nn.profile import profile
from heterofl_flwr.report import load_model
from heterofl_flwr.runs.models import save_models
from heterofl_flwr.transport.arrays import count_bytes


def test_each_rate_is_measured(build, costs):
    model = costs.model()
    assert [cost.level for cost in model.levels] == list("abcde")
    for cost in model.levels:
        expected = profile(build(cost.rate), torch.zeros(1, 1, 8, 8))
        assert cost.parameters == expected.parameters
        sent = dict(build(cost.rate).named_parameters())
        assert cost.bytes == count_bytes(ArrayRecord(sent)) == 4 * cost.parameters + 128 * len(sent)
        assert cost.macs == expected.macs
    assert model.global_model == model.levels[0]


def linear(rate: float, inputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, math.ceil(8 * rate)), nn.Linear(math.ceil(8 * rate), 3))


def test_the_final_model_of_a_level_is_loaded(folder):
    state = dict(linear(1.0).named_parameters())
    save_models(folder, linear, [1.0, 0.5], state)
    model = load_model(folder, "b", linear)
    assert not model.training
    assert torch.equal(model[0].weight, state["0.weight"][:4])


def test_a_model_that_cannot_be_loaded_says_why(folder, build, fake):
    save_models(folder, linear, [1.0, 0.5], dict(linear(1.0).named_parameters()))
    with pytest.raises(ConfigError, match="has no model 'c'; expected one of a, b"):
        load_model(folder, "c", linear)
    with pytest.raises(ShapeError, match=r"model b .* is not what build\(0.5\) makes \(0.weight: \(4, 4\), expected"):
        load_model(folder, "b", lambda rate: linear(rate, inputs=5))
    (folder.models / "b.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"b.safetensors cannot be read"):
        load_model(folder, "b", linear)
    (folder.models / "b.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"b.json cannot be read"):
        load_model(folder, "a", linear)
    save_models(folder, build, [1.0, 0.5], fake.state(1))
    with pytest.raises(ConfigError, match=r"model b of .* has batch norm that was not measured"):
        load_model(folder, "b", build)

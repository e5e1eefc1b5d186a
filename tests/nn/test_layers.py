"""The Scaler and norms."""

import pytest
import torch

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn.layers import Scaler, make_norm, make_scaler


def test_divides_by_its_rate_in_training_only():
    scaler = Scaler(0.25)
    x = torch.tensor([1.0, -2.0])
    torch.testing.assert_close(scaler.train()(x), torch.tensor([4.0, -8.0]), rtol=0, atol=0)
    assert scaler.eval()(x) is x
    assert make_scaler(0.1, 0.3).rate == 1 / 3  # the model's rate over the global one
    with pytest.raises(ConfigError, match=r"0\.5 is larger than the global model of rate 0\.25"):
        make_scaler(0.5, 0.25)


@pytest.mark.parametrize("name", ["cnn", "preresnet18"])
def test_without_norm_it_changes_the_output(small, inputs, name):
    with_scaler, without = _twins(small, name, norm="none")
    x = inputs(name).double()
    assert not torch.allclose(with_scaler(x), without(x), rtol=0.1)
    torch.testing.assert_close(with_scaler.eval()(x), without.eval()(x), rtol=0, atol=0)


def _twins(small, name, **options):
    with_scaler = small(name, scaler=True, **options)(0.25).double().train()
    without = small(name, scaler=False, **options)(0.25).double().train()
    without.load_state_dict(with_scaler.state_dict())
    return with_scaler, without


@pytest.mark.parametrize(
    ("kind", "groups"), [("in", {4: 4, 5: 5, 64: 64}), ("gn", {4: 4, 5: 1, 6: 2, 64: 4}), ("ln", {4: 1, 5: 1, 64: 1})]
)
def test_group_norms_have_the_papers_groups(kind, groups):
    norms = {channels: make_norm(kind, channels) for channels in groups}
    assert {norm.num_channels: norm.num_groups for norm in norms.values()} == groups
    with pytest.raises(ConfigError, match="'bn' is no norm; expected one of none, in, gn, ln, sbn"):
        make_norm("bn", 4)

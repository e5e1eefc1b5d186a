import pytest
import torch
from torch import nn

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.layers import NORMS, make_norm


@pytest.mark.parametrize(
    ("kind", "groups"),
    [("in", {4: 4, 5: 5, 64: 64}), ("gn", {4: 4, 5: 1, 6: 2, 64: 4}), ("ln", {4: 1, 5: 1, 64: 1})],
)
def test_group_norms_have_the_papers_groups(kind, groups):
    for channels, expected in groups.items():
        norm = make_norm(kind, channels)
        assert isinstance(norm, nn.GroupNorm)
        assert (norm.num_groups, norm.num_channels) == (expected, channels)


def test_none_is_the_identity():
    assert isinstance(make_norm("none", 3), nn.Identity)


def test_static_batch_norm_has_parameters_but_no_buffers():
    norm = make_norm("sbn", 3)
    assert isinstance(norm, nn.BatchNorm2d)
    assert set(norm.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_keep_the_shape_and_start_neutral(kind):
    norm = make_norm(kind, 8)
    assert norm(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)
    for name, parameter in norm.named_parameters():
        assert (parameter == (1 if name == "weight" else 0)).all()


def test_an_unknown_norm_names_the_known_ones():
    with pytest.raises(ConfigError, match="'bn' is no norm; expected one of none, in, gn, ln, sbn"):
        make_norm("bn", 4)

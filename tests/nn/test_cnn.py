import pytest
import torch
from torch import nn

from heterofl_flwr.nn.layers import NORMS
from heterofl_flwr.nn.models import CNN


def test_layers_stand_in_the_papers_order():
    names = [name for name, _ in CNN(hidden=(4, 8)).features.named_children()]
    assert names == ["conv1", "scaler1", "norm1", "relu1", "pool1", "conv2", "scaler2", "norm2", "relu2"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rate", [1.0, 0.3, 0.0625])
def test_logits_have_one_column_per_class(norm, rate):
    assert CNN(3, 7, rate=rate, norm=norm)(torch.randn(2, 3, 24, 24)).shape == (2, 7)


def test_small_images_may_shrink_to_one_pixel():
    assert CNN().eval()(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_the_classifier_starts_without_bias_and_keeps_all_classes():
    model = CNN(rate=0.0625)
    assert (model.linear.bias == 0).all()
    assert model.linear.weight.shape == (10, 32)


def test_class_rows_are_named():
    model = CNN()
    assert all(len(model.state_dict()[name]) == 10 for name in model.label_rows)


def test_without_scaler_there_is_none():
    assert isinstance(CNN(rate=0.5, scaler=False).features.scaler1, nn.Identity)

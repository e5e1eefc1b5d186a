import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.nn.loss import flatten_positions, mask_logits, masked_cross_entropy, perplexity


@pytest.mark.parametrize(("fill", "value"), [("zero", 0.0), ("-inf", -math.inf)])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3)])
def test_absent_classes_are_filled_on_axis_one(fill, value, shape):
    logits = torch.randn(shape)
    masked = mask_logits(logits, torch.tensor([2, 0]), fill)
    assert torch.equal(masked[:, [0, 2]], logits[:, [0, 2]])
    assert (masked[:, [1, 3]] == value).all()


@pytest.mark.parametrize(("classes", "fill"), [(None, "zero"), (None, "-inf"), (torch.tensor([1]), "none")])
def test_without_mask_logits_are_as_they_are(classes, fill):
    logits = torch.randn(2, 3)
    assert mask_logits(logits, classes, fill) is logits


def test_a_client_without_classes_masks_all_on_any_device():
    with FakeTensorMode():  # which refuses to compute what lies on two devices
        classes = torch.empty(0, dtype=torch.int64, device="cuda")
        assert mask_logits(torch.empty(2, 3, device="cuda"), classes).is_cuda


def test_zero_filled_classes_stay_in_the_softmax():
    logits, targets = torch.full((1, 3), -2.0), torch.tensor([0])
    loss = masked_cross_entropy(logits, targets, torch.tensor([0]))
    assert loss.item() == pytest.approx(2 + math.log(math.exp(-2) + 2))
    assert mask_logits(logits, torch.tensor([0])).argmax().item() == 1


def test_infinitely_low_classes_leave_the_softmax():
    logits, targets = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    loss = masked_cross_entropy(logits, targets, torch.tensor([0, 1]), "-inf")
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :2], targets))


def test_an_unknown_fill_raises():
    with pytest.raises(ConfigError, match="'inf' is no fill for logits; expected one of zero, -inf, none"):
        mask_logits(torch.zeros(1, 2), None, "inf")


@pytest.mark.parametrize("classes", [[0, 3], [-1], [[0]], [0.0], 0])
def test_classes_that_do_not_fit_raise(classes):
    with pytest.raises(DataError, match="expected whole numbers from 0 to 2"):
        mask_logits(torch.zeros(1, 3), torch.tensor(classes))


@pytest.mark.parametrize(("shape", "target"), [((), 3), ((5,), -1)])
def test_targets_out_of_range_raise(shape, target):
    with pytest.raises(DataError, match="targets do not fit 3 classes"):
        masked_cross_entropy(torch.zeros(2, 3, *shape), torch.full((2, *shape), target))


def test_perplexity_is_the_mean_over_chunks_or_over_tokens():
    assert perplexity([1.0, 3.0], [30, 10]) == pytest.approx((math.e + math.e**3) / 2)
    assert perplexity([1.0, 3.0], [30, 10], "fixed") == pytest.approx(math.exp(1.5))


def test_classes_that_lie_last_in_memory_are_flattened_without_a_copy():
    logits, targets = torch.randn(2, 5, 4).transpose(1, 2), torch.randint(4, (2, 5))  # (batch, classes, sequence)
    (flat,), flat_targets = flatten_positions([logits], targets)
    assert flat.data_ptr() == logits.data_ptr()
    assert (flat.shape, flat_targets.shape) == ((10, 4), (10,))
    torch.testing.assert_close(F.cross_entropy(flat, flat_targets), F.cross_entropy(logits, targets))
    images, labels = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    assert flatten_positions([images], labels)[0][0] is images
    assert flatten_positions([logits, images.flatten(2)], targets)[0][0] is logits  # all outputs or none
    assert flatten_positions([torch.randn(3, 4)], torch.arange(3))[1].shape == (3,)

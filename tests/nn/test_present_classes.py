import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.nn.loss import class_mask, mask_logits, masked_cross_entropy
from heterofl_flwr.nn.present_classes import BLOCK, MANY, PresentClasses, predict


@settings(deadline=None)
@given(st.data())
def test_the_present_classes_alone_give_the_masked_loss_and_predictions(data):
    number, seed = data.draw(st.integers(2, 9)), data.draw(st.integers(0, 99))
    fill = data.draw(st.sampled_from(["zero", "-inf"]))
    classes = sorted(data.draw(st.sets(st.integers(0, number - 1), min_size=1, max_size=number - 1)))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (20, number), generator=generator).float()  # many are equal
    targets = torch.randint(number, (20,), generator=generator)
    present = PresentClasses(class_mask(classes, number), fill)
    assert present.classes.tolist() == classes
    own, columns = logits[:, classes], present.columns(targets)
    masked = mask_logits(logits, torch.tensor(classes), fill)
    assert torch.equal(present.predict(own), masked.argmax(1))
    expected = masked_cross_entropy(masked, targets).item()
    assert present.loss(own, columns).item() == pytest.approx(expected, rel=1e-5)


def test_a_text_keeps_its_shape_in_columns():
    present = PresentClasses(class_mask([1, 3], 5), "zero")
    assert present.columns(torch.tensor([[3, 1], [0, 4]])).tolist() == [[1, 0], [2, 2]]
    with pytest.raises(DataError, match="targets do not fit 5 classes"):
        present.columns(torch.tensor([-1]))


@pytest.mark.parametrize("classes", [5, MANY, MANY + 1, MANY + BLOCK - 1])
@pytest.mark.parametrize("kind", ["normal", "equal", "nan"])
def test_the_prediction_is_the_first_largest_logit(classes, kind):
    logits = torch.randn(50, classes)
    if kind != "normal":
        logits = logits.round()
    if kind == "nan":
        logits[torch.rand(50, classes) < 2 / classes] = math.nan
    value, predicted = predict(logits)
    assert torch.equal(predicted, logits.argmax(1))
    torch.testing.assert_close(value, logits.amax(1), rtol=0, atol=0, equal_nan=True)

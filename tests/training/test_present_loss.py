import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from heterofl_flwr.nn.transformer import Transformer, TransformerShape
from heterofl_flwr.training.present_loss import PresentLoss
from heterofl_flwr.training.step import Masking, compute_loss

WORDS = 9
SHAPE = TransformerShape(sequence=8, embedding=8, hidden=8, heads=2, layers=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Transformer(WORDS, SHAPE).train()
    nn.init.normal_(model.decoder[-1].bias)
    return model


def results(compute, model, inputs, targets):
    """Return loss, hits and gradients; dropout draws the same numbers in each call."""
    torch.manual_seed(1)
    loss, hits = compute(inputs, targets)
    gradients = torch.autograd.grad(loss, list(model.parameters())) if loss.isfinite() else ()
    return loss, hits.flatten(), *gradients


@pytest.mark.parametrize("fill", ["zero", "-inf"])
@pytest.mark.parametrize("classes", [[3], [5, 1, 2], torch.tensor([1, 1, 7]), range(1, WORDS), range(WORDS - 1)])
@pytest.mark.parametrize("rows", [1, 3])
def test_it_equals_the_loss_of_masked_logits(model, fill, classes, rows):
    present = torch.as_tensor(classes if isinstance(classes, torch.Tensor) else list(classes))
    inputs, targets = torch.randint(WORDS + 1, (rows, 7)), present[torch.randint(len(present), (rows, 7))]
    expected = results(lambda *batch: compute_loss(model, *batch, Masking(classes, fill)), model, inputs, targets)
    found = results(PresentLoss.find(model, classes, fill), model, inputs, targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert expected[1].any() or len(present) > 1


@pytest.mark.parametrize("classes", [[0, 1, 2], [4, 8], range(1, WORDS)])
def test_a_target_without_a_logit_counts_as_in_the_masked_loss(model, classes):
    inputs, targets = torch.randint(WORDS, (2, 6)), torch.arange(12).view(2, 6) % WORDS
    expected = results(lambda *batch: compute_loss(model, *batch, Masking(classes, "zero")), model, inputs, targets)
    found = results(PresentLoss.find(model, classes, "zero"), model, inputs, targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert PresentLoss.find(model, classes, "-inf")(inputs, targets)[0] == math.inf


@pytest.mark.parametrize(("classes", "value"), [([0, 5], 0.0), ([3, 5], 0.0), ([3, 5], 1.0), ([0, 5], -1.0)])
def test_among_equal_logits_the_first_class_is_predicted(model, classes, value):
    nn.init.zeros_(model.decoder[-1].weight)
    nn.init.constant_(model.decoder[-1].bias, value)
    inputs, targets = torch.zeros(2, 4, dtype=torch.int64), torch.arange(8).view(2, 4) % WORDS
    hits = compute_loss(model, inputs, targets, Masking(classes, "zero"))[1]
    assert torch.equal(PresentLoss.find(model, classes, "zero")(inputs, targets)[1], hits.flatten())
    assert hits.sum() == 1


class Louder(Transformer):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


def hooked(model):
    model.encoder[0].register_forward_hook(lambda *_: None)


def replaced(model):
    model.decoder[-1] = nn.utils.parametrizations.weight_norm(model.decoder[-1])


def patched(model):
    model.forward = lambda tokens: tokens


def with_own_decoder(model):
    model.decoder = nn.Linear(8, WORDS)


@pytest.mark.parametrize("change", [hooked, replaced, patched, with_own_decoder])
def test_a_changed_model_computes_all_logits(model, change):
    assert PresentLoss.find(copy.deepcopy(model), [1, 2], "zero")
    change(model)
    assert PresentLoss.find(model, [1, 2], "zero") is None


@pytest.mark.parametrize(("classes", "fill"), [(None, "zero"), ([1, 2], "none"), ([], "zero"), (range(WORDS), "zero")])
def test_where_no_class_is_filled_all_logits_are_computed(model, classes, fill):
    assert PresentLoss.find(model, classes, fill) is None
    assert PresentLoss.find(Louder(WORDS, replace(SHAPE)), [1, 2], "zero") is None
    assert PresentLoss.find(nn.Linear(2, 2), [1], "zero") is None

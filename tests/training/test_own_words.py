import copy
import math
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import nn

from heterofl_flwr.data import Reading, Split
from heterofl_flwr.nn.penalty import AlignedQuadratic
from heterofl_flwr.nn.transformer import Transformer, TransformerShape
from heterofl_flwr.training.engines.plain import DivergedError, train_plain
from heterofl_flwr.training.options import TrainingJob, TrainOptions
from heterofl_flwr.training.own_words import OwnWords

WORDS = 11
SHAPE = TransformerShape(sequence=8, embedding=8, hidden=8, heads=2, layers=1)
OPTIONS = TrainOptions(learning_rate=0.3, epochs=2, batch_size=2, weight_decay=0.1)


def make_job(classes):
    """Return a client whose text has only words among ``classes``."""
    torch.manual_seed(0)
    model = Transformer(WORDS, SHAPE).double()
    nn.init.normal_(model.decoder[-1].bias)
    present = torch.tensor(sorted(set(classes or range(WORDS))))
    text = present[torch.randint(len(present), (3, 13))]
    split = Split(text, text, reading=Reading(hides_as=WORDS, share=0.3, length=8))
    return TrainingJob(model=model, split=split, seed=5, classes=classes)


def train(job, options):
    """Return the client's result and trained parameters; the client stays as it is."""
    job = replace(job, model=copy.deepcopy(job.model))
    (result,) = train_plain([job], options)
    return result, dict(job.model.named_parameters())


@pytest.mark.parametrize("fill", ["zero", "-inf"])
@pytest.mark.parametrize("classes", [[3], [5, 1, 2], [1, 1, 7], range(1, WORDS), range(WORDS - 1)])
@pytest.mark.parametrize("change", [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"clip": 0.0}], ids=str)
def test_training_in_own_words_equals_training_in_all_words(fill, classes, change):
    job, options = make_job(classes), replace(OPTIONS, mask_fill=fill, **change)
    assert OwnWords.find(job, options)
    result, found = train(job, options)
    with patch.object(OwnWords, "find", return_value=None):
        expected_result, expected = train(job, options)
    assert result.loss == pytest.approx(expected_result.loss, rel=1e-5)
    assert replace(result, loss=0) == replace(expected_result, loss=0)
    for name, value in expected.items():  # losses are in float32
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert found[name].grad is None
    absent = sorted(set(range(WORDS)) - set(classes))
    before = job.model.decoder[-1].weight[absent]
    assert torch.equal(found["decoder.linear2.weight"][absent], before) == (options.weight_decay == 0)


@pytest.mark.parametrize("frozen", ["embedding.token.weight", "decoder.linear2.weight"])
def test_frozen_rows_stay_as_they_are(frozen):
    job = make_job([5, 1, 2])
    job.model.get_parameter(frozen).requires_grad_(requires_grad=False)
    assert torch.equal(train(job, OPTIONS)[1][frozen], job.model.get_parameter(frozen))


@pytest.mark.parametrize(("classes", "value"), [([0, 5], 0.0), ([3, 5], 0.0), ([3, 5], 1.0), ([0, 5], -1.0)])
def test_among_equal_logits_the_first_word_is_predicted(classes, value):
    job, options = make_job(classes), replace(OPTIONS, epochs=1, batch_size=3)
    nn.init.zeros_(job.model.decoder[-1].weight)
    nn.init.constant_(job.model.decoder[-1].bias, value)
    with patch.object(OwnWords, "find", return_value=None):
        expected = train(job, options)[0]
    assert train(job, options)[0].accuracy == expected.accuracy


def test_after_a_loss_that_is_not_finite_the_model_has_all_words():
    job = make_job([5, 1, 2])
    shapes = {name: value.shape for name, value in job.model.named_parameters()}
    job.model.decoder[-1].bias.data[2] = math.nan
    with pytest.raises(DivergedError):
        train_plain([job], OPTIONS)
    assert {name: value.shape for name, value in job.model.named_parameters()} == shapes


class Louder(Transformer):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


def hooked(model):
    model.encoder[0].register_forward_hook(lambda *_: None)


def replaced(model):
    model.decoder[-1] = nn.utils.parametrizations.weight_norm(model.decoder[-1])


def patched(model):
    model.forward = partial(Transformer.forward, model)


def with_own_decoder(model):
    model.decoder = nn.Linear(8, WORDS)


@pytest.mark.parametrize("change", [hooked, replaced, patched, with_own_decoder])
def test_a_changed_model_is_trained_in_all_words(change):
    job = make_job([1, 2])
    assert OwnWords.find(job, OPTIONS)
    change(job.model)
    assert OwnWords.find(job, OPTIONS) is None


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ({"classes": None}, {}),
        ({"classes": range(WORDS)}, {}),
        ({"classes": [1]}, {}),  # the text has other words too
        ({"model": Louder(WORDS, SHAPE)}, {}),
        ({"model": nn.Linear(2, 2)}, {}),
        ({"penalty": lambda: 0.0}, {}),
        ({"joint_loss": lambda *_: 0.0}, {}),
        ({"quadratic": AlignedQuadratic(0.1, (), ())}, {}),
        ({"split": Split(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))}, {}),
        ({}, {"proximal": 0.1}),
        ({}, {"mask_fill": "none"}),
    ],
)
def test_other_training_is_in_all_words(job, options):
    assert OwnWords.find(replace(make_job([5, 1, 2]), **job), replace(OPTIONS, **options)) is None


@pytest.mark.parametrize("token", [-1, WORDS + 1])
def test_tokens_that_are_no_words_are_left_to_the_model(token):
    job = make_job([5, 1, 2])
    job.split.inputs[0, 0] = token
    assert OwnWords.find(job, OPTIONS) is None


def test_a_mask_that_is_a_word_is_left_to_the_model():
    job = make_job([5, 1, 2])
    reading = Reading(hides_as=5, share=0.3, length=8)
    assert OwnWords.find(replace(job, split=replace(job.split, reading=reading)), OPTIONS) is None
    assert math.isfinite(train(job, OPTIONS)[0].loss)

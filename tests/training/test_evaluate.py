import importlib
import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Reading, Split
from heterofl_flwr.nn import Transformer, mask_logits
from heterofl_flwr.nn.transformer import TransformerShape
from heterofl_flwr.training import EvaluateResult, evaluate, train
from heterofl_flwr.training.evaluate import evaluate_each
from tests.training.conftest import OPTIONS, images

evaluate_module = importlib.import_module("heterofl_flwr.training.evaluate")
LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.5, 1.0, 2.0], [-1.0, -2.0, -3.0]])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_equals_one_pass_over_everything(build, split, batch_size):
    model = build(norm="gn")
    result = evaluate(model, split, batch_size=batch_size)
    logits = model.eval()(split.inputs)
    assert result.examples == 23
    assert result.loss == pytest.approx(F.cross_entropy(logits, split.targets).item(), rel=1e-5)
    assert result.correct == int((logits.argmax(1) == split.targets).sum())
    assert result.accuracy == result.correct / 23


@pytest.mark.parametrize(
    ("fill", "classes", "correct"),
    [("zero", [0, 1], 2), ("-inf", [0, 1], 3), ("none", [0, 1], 2), ("zero", None, 2), ("-inf", [1], 1)],
)
def test_masks_to_any_classes(fill, classes, correct):
    """Row 0 is right in any case; row 1 is right once class 2 is gone; row 2 loses to the zeros of the paper."""
    targets = torch.tensor([0, 1, 0])
    result = evaluate(nn.Identity(), Split(LOGITS, targets), classes=classes, fill=fill)
    masked = LOGITS.clone()
    if classes is not None and fill != "none":
        absent = [number for number in range(3) if number not in classes]
        masked[:, absent] = 0.0 if fill == "zero" else -torch.inf
    assert result.correct == int((masked.argmax(1) == targets).sum()) == correct
    assert result.loss == pytest.approx(F.cross_entropy(masked, targets).item())


def test_the_model_its_modes_and_its_layout_stay(build, split):
    changes_its_inputs = nn.LeakyReLU(0.5, inplace=True)
    model = nn.Sequential(changes_its_inputs, build(norm="gn"), nn.Dropout(0.5), nn.Dropout(0.5).eval())
    modes = [module.training for module in model.modules()]
    before = {name: (value.clone(), value.data_ptr(), value.stride()) for name, value in model.state_dict().items()}
    assert evaluate(model, split) == evaluate(model, split)  # without dropout
    with pytest.raises(DataError, match="targets do not fit 5 classes"):
        evaluate(model, Split(split.inputs, split.targets + 5))
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert (value.data_ptr(), value.stride()) == before[name][1:]
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in model.parameters())


def test_nothing_is_evaluated_to_zero(build):
    empty = Split(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))
    result = evaluate(build(), empty, classes=[0])
    assert result == EvaluateResult(0, 0.0, 0)
    assert result.accuracy == 0


def test_one_example_that_cannot_be_normalised_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4, track_running_stats=False))
    text = r"batch norm cannot normalise a single example \(.*\[1, 4\]\).*batches of two or more"
    with pytest.raises(DataError, match=text):
        evaluate(model, images(1))
    with pytest.raises(DataError, match=text):
        train(model, images(1), OPTIONS, seed=0)
    assert evaluate(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), images(1)).examples == 1


@pytest.mark.parametrize("fill", ["zero", "-inf", "none"])
@pytest.mark.parametrize(
    ("classes", "batch_size"), [(None, 7), ([0, 1, 2, 3], 100), (torch.tensor([2, 0]), 7)], ids=["all", "four", "two"]
)
def test_both_equals_two_evaluations_bit_for_bit(build, split, classes, fill, batch_size):
    passes = []
    model = build(norm="sbn")
    model.register_forward_hook(lambda *_: passes.append(1))
    plain, masked = evaluate_each(model, split, [(None, "none"), (classes, fill)], batch_size=batch_size)
    assert len(passes) == -(-23 // batch_size)
    assert plain == evaluate(model, split, batch_size=batch_size)
    assert masked == evaluate(model, split, classes=classes, fill=fill, batch_size=batch_size)
    assert (plain == masked) == (classes is None or fill == "none")


WORDS = 11


@pytest.mark.parametrize("logits_at_once", [1, 2**22])
@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_perplexity_equals_the_slow_twin(kind, logits_at_once, monkeypatch):
    monkeypatch.setattr(evaluate_module, "LOGITS", logits_at_once)
    torch.manual_seed(0)
    model = Transformer(WORDS, TransformerShape(embedding=8, heads=2, hidden=8, layers=1, sequence=8, dropout=0.0))
    rows = torch.randint(WORDS, (3, 21))
    text = Split(rows, rows, reading=Reading(hides_as=WORDS, share=0.3, length=8))
    sizes = []
    with model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        found = evaluate(model, text, seed=4, perplexity_kind=kind, batch_size=2)
    assert max(sizes) == (1 if logits_at_once == 1 else 2)
    generator = torch.Generator().manual_seed(derive(4, "hidden"))
    losses, counts, correct = [], [], 0
    model.eval()
    for rows in (text.inputs[:2], text.inputs[2:]):
        hidden = torch.rand(rows.shape, generator=generator) < 0.3
        for start in range(0, 21, 8):
            piece, targets = rows[:, start : start + 8].clone(), rows[:, start : start + 8]
            piece[hidden[:, start : start + 8]] = WORDS
            with torch.no_grad():
                logits = model(piece)
            losses.append(F.cross_entropy(logits.double(), targets).item())
            counts.append(targets.numel())
            correct += int((logits.argmax(1) == targets).sum())
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    expected = sum(map(math.exp, losses)) / len(losses) if kind == "paper" else math.exp(mean)
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
    assert (found.examples, found.correct) == (63, correct)
    assert found.loss == pytest.approx(mean, rel=1e-5)


class Tags(nn.Module):
    """A tagger of tokens, with batch norm that normalises by batch."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS + 1, WORDS), nn.BatchNorm1d(WORDS, track_running_stats=False)

    def forward(self, tokens):
        return self.norm(self.embedding(tokens).transpose(1, 2))


def test_a_text_is_evaluated_in_whole_batches_where_a_model_normalises_by_batch(monkeypatch):
    torch.manual_seed(0)
    model, rows = Tags(), torch.randint(WORDS, (4, 16))
    text = Split(rows, rows, reading=Reading(hides_as=WORDS, length=8))
    expected = evaluate(model, text)
    monkeypatch.setattr(evaluate_module, "LOGITS", 1)
    assert evaluate(model, text) == expected


MANY = 700


@pytest.mark.parametrize("fill", ["zero", "-inf", "none"])
@pytest.mark.parametrize("number", [0, 1, 300, 400, 699, 700])
def test_few_of_many_classes_equal_masked_logits(fill, number):
    torch.manual_seed(number)
    classes, logits = torch.randperm(MANY)[:number], torch.randn(40, MANY) - 1
    pool = classes if number and fill == "-inf" else torch.arange(MANY)  # with -inf, others have an infinite loss
    targets = pool[torch.randint(len(pool), (40,))]
    masked = mask_logits(logits, classes, fill)
    targets[::2] = masked[::2].argmax(1)
    result = evaluate(nn.Identity(), Split(logits, targets), classes=classes, fill=fill)
    if number or fill != "-inf":
        assert result.loss == pytest.approx(F.cross_entropy(masked, targets).item(), rel=1e-5)
    assert result.correct == int((masked.argmax(1) == targets).sum())


@pytest.mark.parametrize("target", [-1, -100, MANY])
def test_targets_that_are_no_classes_are_an_error_with_many_classes(target):
    targets = torch.tensor([0, target])
    with pytest.raises(DataError, match=f"targets do not fit {MANY} classes"):
        evaluate(nn.Identity(), Split(torch.zeros(2, MANY), targets), classes=[0, 1])


def test_tensors_that_a_models_code_keeps_can_be_trained_with_later():
    """As tables of positions do, which code computes once for all models."""

    @cache
    def table() -> torch.Tensor:
        return torch.arange(1.0, 4.0)

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * table()

    split = Split(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))
    evaluate(Scaled(2, 3), split)
    assert train(Scaled(2, 3), split, OPTIONS, seed=0).examples == len(split)

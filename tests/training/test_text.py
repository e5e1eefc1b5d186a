"""Training on text and reading it, beside plain twins."""

import math

import pytest
import torch
from torch.nn import functional as F

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Reading, Split
from heterofl_flwr.nn import Transformer
from heterofl_flwr.nn.transformer import TransformerShape
from heterofl_flwr.training import evaluate
from heterofl_flwr.training.evaluate import evaluate_each
from heterofl_flwr.training.step import Masking

WORDS = 11


@pytest.fixture
def text():
    rows = torch.randint(WORDS, (3, 21), generator=torch.Generator().manual_seed(1))
    return Split(rows, rows, reading=Reading(hides_as=WORDS, share=0.3, length=8))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(WORDS, TransformerShape(embedding=8, heads=2, hidden=8, layers=1, sequence=8, dropout=0.0))


@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_perplexity_equals_the_slow_twin(text, model, kind):
    found = evaluate(model, text, seed=4, perplexity_kind=kind, batch_size=2)
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


def test_both_hide_the_same_words(text, model):
    plain, masked = evaluate_each(model, text, [Masking(None, "none"), Masking([1, 2], "zero")], seed=3)
    assert plain == evaluate(model, text, seed=3)
    assert masked == evaluate(model, text, classes=[1, 2], seed=3)

"""The data and the models of ``experiment=lora``: adapters of unequal rank on one frozen language model.

The model, as the paper's Transformer at level c, is trained on the first half of WikiText-2, in two passes. The second
half belongs to clients, to each some hundred neighbouring rows of 64 words; they train LoRA adapters of ranks 16, 8, 4
and 2 on all linear layers of its encoder, or adapters of one rank. ``HETEROFL_DATA`` names the folder with data sets.
"""

from functools import cache

import torch
from torch import nn

from heterofl_flwr import lora
from heterofl_flwr.core.randomness import derive, kept_random_state
from heterofl_flwr.data import Dataset, Reading, Split, load_dataset
from heterofl_flwr.errors import extra
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.transformer import Transformer, TransformerShape
from heterofl_flwr.training import TrainOptions, train

CLIENTS, WORDS = 200, 64
FEWEST = 20  # words that come less often are read as unknown
LAYERS = r".*encoder\.\d+\.(attention\.linear_[qkvo]|linear[12])"
PASSES = TrainOptions(learning_rate=0.1, epochs=2)


@cache
def read_text() -> tuple[Dataset, Split]:
    """Return the data set of the clients, and the rows that the base model is trained on."""
    found = load_dataset("Salesforce/wikitext/wikitext-2-v1")
    known = torch.bincount(found.train.inputs.flatten(), minlength=found.classes) >= FEWEST
    known[0] = True  # the unknown word
    number, classes = (known.cumsum(0) - 1) * known, int(known.sum())

    def read(tokens: torch.Tensor) -> Split:
        rows = number[tokens[: len(tokens) // WORDS * WORDS]].view(-1, WORDS)
        return Split(rows, rows, reading=Reading(hides_as=classes))

    base, own = map(read, found.train.inputs.flatten().chunk(2))
    test = read(found.test.inputs.flatten())
    owners = [torch.arange(len(split.inputs)) * CLIENTS // len(split.inputs) for split in (own, test)]
    return Dataset("lora", own, test, classes, owners=(owners[0], owners[1])), base


def load() -> Dataset:
    """Return the data set, for ``data.name``."""
    return read_text()[0]


@cache
def base_model() -> nn.Module:
    """Return the model that all clients have."""
    dataset, rows = read_text()
    with kept_random_state(0):
        model = Transformer(dataset.classes, TransformerShape(embedding=64, hidden=128), encoder_init="fixed")
    train(model, rows, PASSES, seed=derive(0, "base"))
    return model


@cache
def levels(rank: int) -> Build:
    """Return the function from a rate to the model with adapters of that share of a rank; their scaling is 2."""
    with extra("lora"):
        from peft import LoraConfig, get_peft_model
    with kept_random_state(derive(0, "adapters")):
        return lora(get_peft_model(base_model(), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS)))


def rank_16(rate: float) -> nn.Module:
    """Return the model with adapters of up to rank 16, for ``model.name``."""
    return levels(16)(rate)


def rank_2(rate: float) -> nn.Module:
    """Return the model with adapters of up to rank 2."""
    return levels(2)(rate)

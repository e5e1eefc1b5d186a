"""Data and models of ``experiment=lora``: LoRA adapters of unequal rank on a frozen base model.

The base model is trained on the first half of MNIST. The clients have the second half, rotated by 90 degrees.
"""

import copy
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from heterofl_flwr import lora
from heterofl_flwr.common.errors import extra
from heterofl_flwr.core.randomness import derive, kept_random_state
from heterofl_flwr.data import Dataset, Split, load_dataset
from heterofl_flwr.nn.models import Build, build_model
from heterofl_flwr.training import TrainOptions, train

LAYERS = r"hidden\.linear[1234]|output"
PASSES = TrainOptions(learning_rate=0.01, epochs=2, batch_size=20)


@cache
def read_images() -> tuple[Dataset, Split]:
    """Return the clients' data set, and the images on which the base model is trained."""
    dataset = load_dataset("mnist")
    base, clients = (dataset.train.select(rows) for rows in torch.arange(len(dataset.train)).chunk(2))
    return replace(dataset, name="turned-mnist", train=_turned(clients), test=_turned(dataset.test)), base


def _turned(split: Split) -> Split:
    return replace(split, inputs=split.inputs.rot90(dims=(-2, -1)))


def load() -> Dataset:
    """Return the clients' data set."""
    return read_images()[0]


@cache
def base_model() -> nn.Module:
    """Train the base model and return it."""
    with kept_random_state(0):
        model = build_model("mlp", inputs=(1, 28, 28))(1.0)
    train(model, read_images()[1], PASSES, seed=derive(0, "base"))
    return model


@cache
def levels(rank: int) -> Build:
    """Return a function from a rate to the base model with adapters of rank ``rate * rank``, rounded up."""
    with extra("lora"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS)
    with kept_random_state(derive(0, "adapters")):
        return lora(get_peft_model(copy.deepcopy(base_model()), config))


def rank_16(rate: float) -> nn.Module:
    """Return the base model with adapters of rank ``16 * rate``, rounded up."""
    return levels(16)(rate)


def rank_2(rate: float) -> nn.Module:
    """Return the base model with adapters of rank ``2 * rate``, rounded up."""
    return levels(2)(rate)

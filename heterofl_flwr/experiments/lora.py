"""The data and the models of ``experiment=lora``: adapters of unequal rank on one frozen model.

The model, an MLP, is trained on the first half of MNIST. The second half belongs to the clients, whose images are
turned by a quarter, so that the model without adapters is wrong on nearly all of them. They train LoRA adapters of
ranks 16, 8, 4 and 2, or adapters of one rank, on all of its layers. ``HETEROFL_DATA`` names the folder with data sets.
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
    """Return the data set of the clients, and the images that the base model is trained on."""
    dataset = load_dataset("mnist")
    base, clients = (dataset.train.select(rows) for rows in torch.arange(len(dataset.train)).chunk(2))
    return replace(dataset, name="turned-mnist", train=_turned(clients), test=_turned(dataset.test)), base


def _turned(split: Split) -> Split:
    return replace(split, inputs=split.inputs.rot90(dims=(-2, -1)))


def load() -> Dataset:
    """Return the data set, for ``data.name``."""
    return read_images()[0]


@cache
def base_model() -> nn.Module:
    """Return the model that all clients have."""
    with kept_random_state(0):
        model = build_model("mlp", inputs=(1, 28, 28))(1.0)
    train(model, read_images()[1], PASSES, seed=derive(0, "base"))
    return model


@cache
def levels(rank: int) -> Build:
    """Return the function from a rate to the model with adapters of that share of a rank; their scaling is 2."""
    with extra("lora"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS)
    with kept_random_state(derive(0, "adapters")):
        return lora(get_peft_model(copy.deepcopy(base_model()), config))


def rank_16(rate: float) -> nn.Module:
    """Return the model with adapters of up to rank 16, for ``model.name``."""
    return levels(16)(rate)


def rank_2(rate: float) -> nn.Module:
    """Return the model with adapters of up to rank 2."""
    return levels(2)(rate)

"""Adapters of unequal rank on one frozen model that all levels share."""

from heterofl_flwr.adapters.averaging import ProductAggregator, StackAggregator, ZeroPaddedAggregator
from heterofl_flwr.adapters.lora import LoraLevels, lora
from heterofl_flwr.adapters.stacking import merge_updates, with_updates

__all__ = [
    "LoraLevels",
    "ProductAggregator",
    "StackAggregator",
    "ZeroPaddedAggregator",
    "lora",
    "merge_updates",
    "with_updates",
]

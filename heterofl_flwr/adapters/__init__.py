"""LoRA adapters of unequal rank on one frozen model that all levels share."""

from heterofl_flwr.adapters.averaging import ProductMean
from heterofl_flwr.adapters.lora import LoraLevels, lora

__all__ = ["LoraLevels", "ProductMean", "lora"]

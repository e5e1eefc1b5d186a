"""LoRA adapters: smaller levels have adapters of lower rank."""

from heterofl_flwr.adapters.averaging import ProductMean
from heterofl_flwr.adapters.lora import LoraLevels, lora

__all__ = ["LoraLevels", "ProductMean", "lora"]

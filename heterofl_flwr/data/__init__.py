"""Data sets as tensors, and their partitions among clients."""

from heterofl_flwr.data.dataset import Dataset, Reading, Split
from heterofl_flwr.data.load import load_dataset
from heterofl_flwr.data.splits import Partitions, split_dataset

__all__ = ["Dataset", "Partitions", "Reading", "Split", "load_dataset", "split_dataset"]

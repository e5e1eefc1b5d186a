"""Data sets as tensors, and which client holds which part of them."""

from heterofl_flwr.data.augment import AUGMENTS, crop_flip
from heterofl_flwr.data.dataset import Dataset, Reading, Split
from heterofl_flwr.data.load import load_dataset
from heterofl_flwr.data.splits import Partitions, check_kind, iid, matching_test, noniid, split_dataset

__all__ = [
    "AUGMENTS",
    "Dataset",
    "Partitions",
    "Reading",
    "Split",
    "check_kind",
    "crop_flip",
    "iid",
    "load_dataset",
    "matching_test",
    "noniid",
    "split_dataset",
]

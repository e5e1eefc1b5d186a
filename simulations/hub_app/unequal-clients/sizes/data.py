"""A node's data: a part of a dataset in a simulation, a folder of its own in a deployment."""

from functools import cache

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from flwr.app import Context
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import IidPartitioner

Examples = tuple[torch.Tensor, torch.Tensor]


def load(context: Context) -> tuple[Examples, Examples]:
    """Return the node's images and labels: four fifths to train on, the rest to evaluate."""
    config, node = context.run_config, context.node_config
    column = str(config["image-column"])
    if "data-path" in node:
        return _load(str(node["data-path"]), column)
    return _load(str(config["dataset"]), column, int(node["partition-id"]), int(node["num-partitions"]))


@cache
def _load(source: str, column: str, partition: int = 0, partitions: int = 0) -> tuple[Examples, Examples]:
    """Return the examples of a folder, or of a partition of a dataset."""
    dataset = _federated(source, partitions).load_partition(partition) if partitions else load_from_disk(source)
    parts = dataset.train_test_split(test_size=0.2, seed=42)
    return _examples(parts["train"], column), _examples(parts["test"], column)


@cache
def _federated(name: str, partitions: int) -> FederatedDataset:
    return FederatedDataset(dataset=name, partitioners={"train": IidPartitioner(partitions)})


def _examples(part: Dataset, column: str) -> Examples:
    """Return images with three channels, between -1 and 1, and their labels."""
    images = np.stack([np.asarray(image.convert("RGB")) for image in part[column]])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # (examples, 3, height, width)
    return pixels / 127.5 - 1, torch.tensor(part["label"])

"""heterofl: A Flower Baseline."""

from functools import cache

import numpy as np
import torch
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import IidPartitioner, ShardPartitioner

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training images


@cache
def load_fds(dataset: str, num_partitions: int, non_iid: bool) -> FederatedDataset:
    """Return the federated dataset: IID, or two shards of one class for each client."""
    train = IidPartitioner(num_partitions)
    if non_iid:
        train = ShardPartitioner(num_partitions, "label", num_shards_per_partition=2)
    test = IidPartitioner(num_partitions)
    return FederatedDataset(
        dataset=dataset, partitioners={"train": train, "test": test}
    )


@cache
def load_data(config: tuple[str, bool], num_partitions: int, partition_id: int):
    """Return the images and labels of a client's parts for training and testing."""
    fds = load_fds(config[0], num_partitions, config[1])
    return tuple(
        to_tensors(fds.load_partition(partition_id, split))
        for split in ("train", "test")
    )


def to_tensors(partition) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images (examples, 1, height, width) and labels."""
    images = np.stack([np.asarray(image) for image in partition["image"]])
    pixels = torch.from_numpy(images).float().unsqueeze(1) / 255
    return (pixels - MEAN) / DEVIATION, torch.tensor(partition["label"])

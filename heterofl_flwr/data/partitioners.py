"""The paper's splits for users of flwr-datasets: ``FederatedDataset(partitioners={"train": ...})``.

Kept out of the package's ``__init__``: this module loads flwr-datasets.
"""

from abc import abstractmethod
from functools import cached_property

import torch

from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.data.splits import iid, noniid
from heterofl_flwr.errors import DataError, extra

with extra("data"):
    from datasets import Dataset  # type: ignore[import-untyped]
    from flwr_datasets.partitioner import Partitioner  # type: ignore[import-untyped]


class _RowsPartitioner(Partitioner):  # type: ignore[misc]  # flwr-datasets has no types
    """Partitions by row numbers, which are computed when the first partition is loaded."""

    def __init__(self, num_partitions: int, seed: int = 0) -> None:
        super().__init__()
        self._num_partitions, self._seed = num_partitions, seed

    @property
    def num_partitions(self) -> int:
        """The number of partitions."""
        return self._num_partitions

    def load_partition(self, partition_id: int) -> Dataset:
        """Return one partition, counted from 0."""
        if not 0 <= partition_id < self._num_partitions:
            raise DataError(f"partition {partition_id} does not exist: expected 0 to {self._num_partitions - 1}")
        return self.dataset.select(self._rows[partition_id].tolist())

    @cached_property
    @abstractmethod
    def _rows(self) -> tuple[torch.Tensor, ...]: ...


class BalancedIidPartitioner(_RowsPartitioner):
    """Partitions of exactly equal size, drawn without replacement, as the paper's IID split.

    What the division leaves over is unused; flwr-datasets' ``IidPartitioner`` makes some partitions larger by one.

    Parameters
    ----------
    num_partitions : int
        The number of partitions.
    seed : int
        Another seed gives another split.
    """

    @cached_property
    def _rows(self) -> tuple[torch.Tensor, ...]:
        return iid(torch.empty(len(self.dataset)), self._num_partitions, self._seed)


class ClassShardPartitioner(_RowsPartitioner):
    """Partitions of at most ``classes_per_partition`` classes, as the paper's non-IID split.

    With the same parameters, partitions of the train split and of the test split have the same classes. No
    partitioner of flwr-datasets promises both.

    Parameters
    ----------
    num_partitions : int
        The number of partitions.
    partition_by : str
        The column of class numbers.
    classes_per_partition : int
        Shards, each of one class, for each partition.
    seed : int
        Another seed gives another split.
    fidelity : Variant
        A partition that draws one class twice gets one shard of it, and the other is lost (paper), or both (fixed).
    """

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        classes_per_partition: int = 2,
        *,
        seed: int = 0,
        fidelity: Variant = "paper",
    ) -> None:
        Fidelity.of(fidelity)
        super().__init__(num_partitions, seed)
        self._partition_by, self._classes, self._fidelity = partition_by, classes_per_partition, fidelity

    @cached_property
    def _rows(self) -> tuple[torch.Tensor, ...]:
        columns = self.dataset.column_names
        if self._partition_by not in columns:
            raise DataError(f"the data set has no column {self._partition_by}; it has {', '.join(columns)}")
        # Only this column is read, so that no image is decoded.
        targets = self.dataset.select_columns(self._partition_by).with_format("torch")[:][self._partition_by]
        if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or targets.dim() != 1:
            found = self.dataset.features[self._partition_by]
            raise DataError(f"column {self._partition_by} holds no class numbers, but {found}: see class_encode_column")
        return noniid(targets, self._num_partitions, self._classes, self._seed, fidelity=self._fidelity)[0]

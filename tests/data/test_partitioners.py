"""The paper's splits as partitioners of flwr-datasets."""

import datasets
import pytest
import torch
from flwr_datasets.partitioner import Partitioner

from heterofl_flwr.data import iid, matching_test, noniid
from heterofl_flwr.data.partitioners import BalancedIidPartitioner, ClassShardPartitioner
from heterofl_flwr.errors import ConfigError, DataError

LABELS = (torch.arange(403) * 7 % 10).tolist()


def table(labels=LABELS, **columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": labels, "row": list(range(len(labels))), **columns})


def rows_of(partitioner: Partitioner, data: datasets.Dataset) -> list[list[int]]:
    partitioner.dataset = data
    return [partitioner.load_partition(number)["row"][:] for number in range(partitioner.num_partitions)]


def test_balanced_partitions_are_those_of_iid():
    expected = [rows.tolist() for rows in iid(torch.tensor(LABELS), 10, 4)]
    assert rows_of(BalancedIidPartitioner(10, seed=4), table()) == expected


@pytest.mark.parametrize("fidelity", ["paper", "fixed"])
def test_class_shards_are_those_of_noniid(fidelity):
    targets, test_labels = torch.tensor(LABELS), list(reversed(LABELS[:100]))
    expected, deal = noniid(targets, 10, 2, 4, fidelity=fidelity)
    train = rows_of(ClassShardPartitioner(10, "label", seed=4, fidelity=fidelity), table())
    test = rows_of(ClassShardPartitioner(10, "label", seed=4, fidelity=fidelity), table(test_labels))
    assert train == [rows.tolist() for rows in expected]
    assert test == [rows.tolist() for rows in matching_test(torch.tensor(test_labels), deal, 4, fidelity=fidelity)]


def test_a_shuffled_data_set_is_dealt_by_its_labels():
    partitioner = ClassShardPartitioner(10, "label", seed=1)
    partitioner.dataset = (
        table(image=[{"bytes": b"no image", "path": None}] * 403).cast_column("image", datasets.Image()).shuffle(seed=1)
    )
    for number in range(10):
        part = partitioner.load_partition(number).remove_columns("image")
        assert 1 <= len(set(part["label"])) <= 2


def test_a_column_without_class_numbers_raises_an_error():
    with pytest.raises(DataError, match="has no column digit; it has label, row"):
        rows_of(ClassShardPartitioner(3, "digit"), table())
    for kind, own in (("float64", 0.5), ("string", "cat")):
        with pytest.raises(DataError, match=rf"column other holds no class numbers, but Value\('{kind}'\)"):
            rows_of(ClassShardPartitioner(3, "other"), table(other=[own] * 403))
    with pytest.raises(ConfigError, match="fidelity is 'best'"):
        ClassShardPartitioner(3, "label", fidelity="best")

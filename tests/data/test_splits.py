"""Which client holds which examples."""

import math
import warnings
from dataclasses import replace

import datasets
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Dataset, Split, split_dataset
from heterofl_flwr.data.splits import check_kind, dirichlet, iid, matching_shares, matching_test, noniid

PAPER = torch.arange(50_000) % 10
"""Class numbers like those of CIFAR10: 10 classes of 5,000."""


def uneven(number: int, classes: int = 10, seed: int = 0) -> torch.Tensor:
    """Return class numbers whose counts differ, as in MNIST."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.arange(classes), torch.randint(classes, (number - classes,), generator=generator)])


def dataset(train: torch.Tensor, test: torch.Tensor, classes: int = 10) -> Dataset:
    def split(targets: torch.Tensor) -> Split:
        return Split(torch.zeros(len(targets), 1), targets)

    return Dataset("numbers", split(train), split(test), classes)


def distinct(rows):
    together = torch.cat(rows)
    return len(together) == len(together.unique())


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("number", "clients"), [(50_000, 100), (103, 10), (7, 7)])
def test_iid_gives_each_client_equally_many_and_nobody_anothers(number, clients):
    rows = iid(torch.zeros(number), clients, seed=1)
    assert [len(mine) for mine in rows] == [number // clients] * clients
    assert distinct(rows)


@pytest.mark.parametrize("fidelity", ["paper", "fixed"])
@pytest.mark.parametrize(("targets", "classes"), [(PAPER, 1), (uneven(20_011), 2), (uneven(20_011), 3)], ids=[1, 2, 3])
def test_noniid_gives_at_most_n_classes_to_train_and_to_test(targets, classes, fidelity):
    rows, deal = noniid(targets, 100, classes, 6, fidelity=fidelity)
    test = uneven(5_017, seed=1)
    tested = matching_test(test, deal, 6, fidelity=fidelity)
    assert distinct(rows)
    assert distinct(tested)
    for mine, theirs, held in zip(rows, tested, deal, strict=True):
        assert len(held) == classes
        assert targets[mine].unique().tolist() == test[theirs].unique().tolist() == sorted(set(held))
    if fidelity == "fixed":
        assert (sum(map(len, rows)), sum(map(len, tested))) == (len(targets), len(test))


def test_noniid_of_the_paper_loses_the_shards_drawn_twice():
    """Of 100 clients, 100 * 19 / 199 = 9.5 draw one class twice, and 250 of 50,000 images go with each."""
    lost = []
    for seed in range(50):
        rows, deal = noniid(PAPER, 100, 2, seed)
        twice = [held[0] == held[1] for held in deal]
        assert [len(mine) for mine in rows] == [250 if same else 500 for same in twice]
        lost.append(sum(twice))
    spread = math.sqrt(9.5 / 50)
    assert sum(lost) / 50 == pytest.approx(100 * 19 / 199, abs=4 * spread)


def test_a_small_test_class_leaves_some_clients_without():
    deal = ((0, 1), (0, 1), (0, 1))
    tested = matching_test(torch.tensor([0, 0, 0, 1]), deal, 0)
    assert sorted(map(len, tested)) == [1, 1, 2]


@given(
    number=st.integers(20, 300),
    clients=st.integers(1, 12),
    per_client=st.integers(1, 4),
    classes=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_noniid_deals_each_example_once_or_says_why_not(number, clients, per_client, classes, seed):
    targets = uneven(number, classes)
    try:
        rows, deal = noniid(targets, clients, per_client, seed, fidelity="fixed")
    except (ConfigError, DataError):
        smallest = int(torch.bincount(targets).min())
        assert per_client > classes or clients * per_client < classes or smallest < clients * per_client
        return
    assert sorted(torch.cat(rows).tolist()) == list(range(number))
    assert all(targets[mine].unique().tolist() == sorted(set(held)) for mine, held in zip(rows, deal, strict=True))
    assert max(map(len, deal)) <= per_client


def test_dirichlet_deals_test_rows_by_shares_of_train_rows():
    train, test = uneven(5_000), uneven(4_000, seed=1)
    rows = dirichlet(train, 0.3, 20, seed=0)
    assert sorted(torch.cat(rows).tolist()) == list(range(5_000))
    assert min(map(len, rows)) >= 2
    tested = matching_shares(train, rows, test, seed=0)
    assert sorted(torch.cat(tested).tolist()) == list(range(4_000))
    sizes = torch.bincount(train), torch.bincount(test)
    for mine, theirs in zip(rows, tested, strict=True):
        expected = torch.bincount(train[mine], minlength=10) / sizes[0] * sizes[1]
        assert (torch.bincount(test[theirs], minlength=10) - expected).abs().max() <= 1
        assert set(test[theirs].tolist()) <= set(train[mine].tolist())


@pytest.mark.parametrize(("alpha", "clients"), [(0.3, 20), (5.0, 50), (100.0, 1)])
def test_dirichlet_gives_the_partitions_of_flwr_datasets(alpha, clients):
    """With 20 clients, the first draws give some client fewer than two examples."""
    from flwr_datasets.partitioner import DirichletPartitioner  # here, as it loads what draws figures

    targets, seed = 2 * uneven(600, classes=3), derive(7, "split", "dirichlet")
    partitioner = DirichletPartitioner(clients, "class", alpha, min_partition_size=2, seed=seed)
    partitioner.dataset = datasets.Dataset.from_dict({"class": targets.tolist(), "row": range(600)})
    with warnings.catch_warnings(record=True) as repeated:
        warnings.simplefilter("always")
        expected = [partitioner.load_partition(client)["row"][:] for client in range(clients)]
    assert bool(repeated) == (clients == 20)
    assert [rows.tolist() for rows in dirichlet(targets, alpha, clients, seed=7)] == expected


def test_a_dirichlet_split_that_leaves_clients_with_too_few_examples_raises_an_error():
    with pytest.raises(DataError, match=r"by dirichlet-0.1: .* each client has 2 or more, which 11 draws did not give"):
        dirichlet(uneven(100), 0.1, 30, seed=0)


def owned(train_owners, test_owners):
    data = dataset(torch.arange(len(train_owners)) % 10, torch.arange(len(test_owners)) % 10)
    return replace(data, owners=(torch.tensor(train_owners), torch.tensor(test_owners)))


def test_natural_gives_the_partitions_of_flwr_datasets():
    """Owner 4 is in the train split alone, owner 9 in the test split alone."""
    from flwr_datasets.partitioner import NaturalIdPartitioner  # here, as it loads what draws figures

    train, test = [7, 4, 7, 2, 4, 7], [9, 7, 2, 7]
    partitioner = NaturalIdPartitioner("who")
    partitioner.dataset = datasets.Dataset.from_dict({"who": train, "row": range(6)})
    for clients in (2, 3):
        parts = split_dataset(owned(train, test), "natural-who", clients, seed=0)
        expected = [partitioner.load_partition(client)["row"][:] for client in range(clients)]
        assert [rows.tolist() for rows in parts.train] == expected
        assert [rows.tolist() for rows in parts.test] == [[2], [], [1, 3]][:clients]
        assert parts.partial


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (owned([0, 1, 1], [0]), "3 clients are too many for the 2 owners of numbers: use 2 or fewer"),
        (owned([0, 1, 2], [3]), "no client of 3 has test examples"),
        (dataset(uneven(20), uneven(20)), "split is natural, but numbers does not say whose each example is"),
    ],
)
def test_owners_that_do_not_fit_raise_an_error(data, message):
    with pytest.raises((DataError, ConfigError), match=message):
        split_dataset(data, "natural", 3, seed=0)


@pytest.mark.parametrize("kind", ["iid", "non-iid-2", "dirichlet-0.3"])
def test_a_split_is_a_function_of_its_seed(kind):
    data = dataset(uneven(4_000), uneven(900, seed=1))
    one, two, other = (split_dataset(data, kind, 10, seed) for seed in (1, 1, 2))
    assert len(one) == len(one.train) == len(one.test) == len(one.classes) == 10
    assert same(one.train, two.train)
    assert same(one.test, two.test)
    assert one.classes == two.classes
    assert not same(one.train, other.train)
    for rows, classes in zip(one.train, one.classes, strict=True):
        assert list(classes) == data.train.targets[rows].unique().tolist()


def test_unknown_kinds_raise_an_error():
    for kind in ("", "IID", "non-iid-0", "non-iid-x", "dirichlet-0.0", "pathological-2", "natural-"):
        with pytest.raises(ConfigError, match="expected 'iid', 'non-iid-2' "):
            check_kind(kind)


def test_too_many_clients_raise_an_error():
    with pytest.raises(DataError, match="a split of 5 examples is too small for 6 clients"):
        iid(torch.zeros(5), 6, 0)
    with pytest.raises(DataError, match=r"no examples for . of . clients?, the first is client"):
        noniid(torch.tensor([0, 0, 1]), 6, 1, 0)

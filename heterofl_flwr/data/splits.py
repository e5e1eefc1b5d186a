"""Partitions of examples among clients, and the test examples of data without a test split."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, DataError, check_count, counted
from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Dataset

HELD_OUT = 5
"""Without a test split, every fifth example of a class or an owner is held out for testing."""

LEAST = 2
"""Smallest number of training examples of a client in a Dirichlet split: batch norm needs two."""

MOST_DRAWS = 11
"""Number of draws of a Dirichlet split after which it is an error that some client has fewer examples."""

_KIND = re.compile(
    r"iid|non-iid-(?P<classes>[1-9]\d*)|dirichlet-(?P<alpha>\d+(\.\d+)?)"
    r"|natural(-(?P<owner>\w[\w.-]*))?"
)

KINDS = "'iid', 'non-iid-2' (classes a client), 'dirichlet-0.3', 'natural' or 'natural-<column of owners>'"
"""Examples of all kinds of splits, for errors and for the description of ``data.split``."""

Deal = tuple[tuple[int, ...], ...]
"""For each client, the sorted classes of its shards; a class that the client drew twice occurs twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Partitions:
    """Indices of each client's train and test examples, and its classes."""

    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    classes: tuple[tuple[int, ...], ...]
    partial: bool = False
    """Whether the split is natural, so that owners beyond the number of clients are left out. The global model is then
    tested only on the test examples of the clients.
    """

    def __len__(self) -> int:
        return len(self.train)


def split_dataset(dataset: Dataset, kind: str, clients: int, seed: int, fidelity: Variant = "paper") -> Partitions:
    """Split the train and the test split of a data set among clients.

    The split of a text is ``natural``, ``natural-<column>`` or ``iid``. With ``iid`` and fewer test rows than clients,
    the first clients get one test row each, and the others none. A client's classes in a text are the words in its
    training rows.

    Parameters
    ----------
    dataset : Dataset
        The data set to split.
    kind : str
        ``iid``. ``non-iid-<n>``: at most n classes for each client. ``dirichlet-<alpha>``: Dirichlet distribution
        with the concentration alpha. ``natural`` or ``natural-<column>``: the i-th client has the examples of the i-th
        owner; ``load_dataset(owner=...)`` has read the owners from a column.
    clients : int
        Number of clients.
    seed : int
        Seed of the random draws.
    fidelity : Variant
        For ``non-iid``: treatment of a class that a client draws twice; see ``noniid``.
    """
    match = check_kind(kind)
    check_count("the number of clients", clients, 1)
    train, test = dataset.train.targets, dataset.test.targets
    natural, is_text = kind.startswith("natural"), dataset.train.reading is not None
    if is_text and not natural and kind != "iid":
        raise ConfigError(
            f"split is {kind!r}, but {dataset.name} is a text, whose rows have no class: expected iid or natural"
        )
    if natural:
        mine, tested = by_owner(dataset, clients)
    elif is_text:
        mine, tested = iid(train, clients, seed), torch.arange(len(test)).tensor_split(clients)
    elif match["classes"]:
        mine, deal = noniid(train, clients, int(match["classes"]), seed, fidelity=fidelity)
        tested = matching_test(test, deal, seed, fidelity=fidelity)
    elif match["alpha"]:
        mine = dirichlet(train, float(match["alpha"]), clients, seed)
        tested = matching_shares(train, mine, test, seed)
    else:
        mine, tested = iid(train, clients, seed), iid(test, clients, seed)
    classes = tuple(tuple(train[rows].unique().tolist()) for rows in mine)
    return Partitions(mine, tested, classes, natural)


def check_kind(kind: str) -> re.Match[str]:
    """Parse a kind of split, such as ``non-iid-2``; raise ``ConfigError`` if it is invalid."""
    match = _KIND.fullmatch(kind)
    if match is None or float(match["alpha"] or 1) == 0:
        raise ConfigError(f"split is {kind!r}; expected {KINDS}")
    return match


def owner_column(kind: str) -> str | None:
    """Return the argument ``owner`` of ``load_dataset`` for a kind of split.

    The argument is the column of ``natural-<column>``, '' for ``natural``, and None for all other kinds.
    """
    return (check_kind(kind)["owner"] or "") if kind.startswith("natural") else None


def iid(targets: Tensor, clients: int, seed: int) -> tuple[Tensor, ...]:
    """Return random example indices for each client, the same number for all; a remainder is not used."""
    size = len(targets) // clients
    if not size:
        raise DataError(
            f"a split of {len(targets)} examples is too small for {counted(clients, 'client')}: use fewer clients"
        )
    order = torch.randperm(len(targets), generator=_generator(seed, "iid"))
    return order[: size * clients].view(clients, size).unbind()


def noniid(
    targets: Tensor, clients: int, classes_per_client: int, seed: int, *, fidelity: Variant = "paper"
) -> tuple[tuple[Tensor, ...], Deal]:
    """Return the example indices of each client, and a ``Deal`` for ``matching_test``: the classes of nonempty shards.

    Each class is cut into n shards, where n is ``clients * classes_per_client / classes``. The shards are assigned
    at random. If n is not an integer, some classes have one shard more than others. If a client draws several
    shards of one class, it gets one of them with ``paper``, and all with ``fixed``.
    """
    present = targets.unique()  # (classes,), sorted
    number, draws = len(present), clients * classes_per_client
    if not 1 <= classes_per_client <= number or draws < number:
        least = -(-number // max(1, min(classes_per_client, number)))
        raise ConfigError(
            f"non-iid-{classes_per_client} does not fit {clients} clients and {number} classes: expected 1 to "
            f"{number} classes for each client, and {least} or more clients, so that each class has one"
        )
    each, rest = divmod(draws, number)
    generator = _generator(seed, "classes")
    extra_classes = torch.randperm(number, generator=generator)[:rest] if rest else torch.empty(0, dtype=torch.int64)
    shards = torch.cat([present.repeat(each), present[extra_classes]])
    dealt = shards[torch.randperm(draws, generator=generator)].view(clients, classes_per_client)
    deal = tuple(tuple(sorted(classes)) for classes in dealt.tolist())
    rows = matching_test(targets, deal, seed, fidelity=fidelity)
    if empty := [client for client, mine in enumerate(rows) if not len(mine)]:
        raise DataError(
            f"no examples for {len(empty)} of {counted(clients, 'client')}, the first is client {empty[0]}: "
            f"{len(targets)} examples are too few for {draws} shards; use fewer clients"
        )
    # A class with fewer examples than shards has empty shards; clients with an empty shard do not test this class.
    have = [set(targets[mine].tolist()) for mine in rows]
    return rows, tuple(tuple(name for name in names if name in mine) for names, mine in zip(deal, have, strict=True))


def matching_test(targets: Tensor, deal: Deal, seed: int, *, fidelity: Variant = "paper") -> tuple[Tensor, ...]:
    """Return the example indices of each client: a shard for each class in the client's entry of ``deal``.

    The examples of a class are cut into n shards, where n is how often the class occurs in ``deal``. With ``paper``, a
    client gets only one shard of a class that occurs several times in its entry.
    """
    Fidelity.of(fidelity)
    generator = _generator(seed, "shards")
    stacks: dict[int, list[Tensor]] = {}
    names, numbers = torch.tensor([name for classes in deal for name in classes]).unique(return_counts=True)
    for name, number in zip(names.tolist(), numbers.tolist(), strict=True):
        rows = torch.nonzero(targets == name).flatten()
        # Shards follow the order of the data set; each of the first shards gets one row of the remainder.
        size = len(rows) // number
        body, remainder = rows[: size * number].view(number, size), rows[size * number :]
        order = torch.randperm(number, generator=generator).tolist()
        stacks[name] = [torch.cat([body[shard], remainder[shard : shard + 1]]) for shard in order]
    if fidelity == "paper":
        deal = tuple(tuple(sorted(set(classes))) for classes in deal)
    return tuple(torch.cat([stacks[name].pop() for name in classes]) for classes in deal)


def dirichlet(targets: Tensor, alpha: float, clients: int, seed: int) -> tuple[Tensor, ...]:
    """Return the example indices of each client, with the draws of flwr-datasets' ``DirichletPartitioner``."""
    generator = np.random.default_rng(derive(seed, "split", "dirichlet"))
    classes = [torch.nonzero(targets == name).flatten() for name in targets.unique()]
    for _ in range(MOST_DRAWS):
        shares = [generator.dirichlet([alpha] * clients).cumsum() * len(rows) for rows in classes]
        parts = _cut(classes, [torch.from_numpy(ends).long() for ends in shares])
        if min(map(len, parts)) >= LEAST:
            break
    else:
        raise DataError(
            f"{len(targets)} examples cannot be split for {clients} clients by dirichlet-{alpha:g}: use fewer clients "
            f"or a larger alpha; each client has {LEAST} or more, which {MOST_DRAWS} draws did not give"
        )
    for rows in parts:
        generator.shuffle(rows.numpy())
    return parts


def by_owner(dataset: Dataset, clients: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the train and the test example indices of each client. The i-th client has the i-th owner's examples."""
    if dataset.owners is None:
        raise ConfigError(f"split is natural, but {dataset.name} does not say whose each example is: use another split")
    train, test = dataset.owners
    names, owners = train.unique(return_inverse=True)
    if clients > (number := len(names)):
        raise DataError(
            f"{clients} clients are too many for the {number} owners of {dataset.name}: use {number} or fewer"
        )
    test_rows = torch.nonzero(torch.isin(test, names[:clients])).flatten()
    rows = _group(torch.arange(len(train)), owners, number)[:clients]
    tested = _group(test_rows, torch.searchsorted(names, test[test_rows]), clients)
    if not any(map(len, tested)):
        raise DataError(f"no client of {clients} has test examples: use more clients, or data with a test split")
    return rows, tested


def matching_shares(targets: Tensor, rows: Sequence[Tensor], test_targets: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Return the test example indices of each client.

    For each class, a client's fraction of the test examples equals its fraction of the training examples, up to
    rounding.
    """
    generator = _generator(seed, "shares")
    owners = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(mine) for mine in rows]))
    dealt, classes, ends = targets[torch.cat(list(rows))], [], []
    for name in targets.unique():
        counts = owners[dealt == name].bincount(minlength=len(rows))
        tested = torch.nonzero(test_targets == name).flatten()
        classes.append(tested[torch.randperm(len(tested), generator=generator)])
        # Rounding the running total, not each share, assigns every example once.
        ends.append((counts.cumsum(0).double() / counts.sum() * len(tested)).round().long())
    return _cut(classes, ends)


def _cut(classes: Sequence[Tensor], ends: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return each client's rows: of each class, the rows from the end of the client before up to the client's end.

    ``ends`` has an entry for each class, of shape (clients,). The last client gets the remaining rows.
    """
    clients, owners = len(ends[0]), []
    for rows, end in zip(classes, ends, strict=True):
        sizes = torch.cat([end[:-1], torch.tensor([len(rows)])]).diff(prepend=torch.tensor([0]))
        owners.append(torch.arange(clients).repeat_interleave(sizes))
    return _group(torch.cat(list(classes)), torch.cat(owners), clients)


def _group(rows: Tensor, owners: Tensor, number: int) -> tuple[Tensor, ...]:
    """Return the rows of each owner, from 0 to ``number - 1``, in their order."""
    sizes = owners.bincount(minlength=number).tolist()
    return tuple(rows[owners.argsort(stable=True)].split(sizes))


def hold_out(place: str, groups: Tensor) -> Tensor:
    """Return a mask of the test examples: every fifth of each group, such as a class.

    Raise ``DataError`` if no group has five examples. ``place`` is the source of the data.
    """
    sizes = groups.unique(return_counts=True)[1].tolist()
    rank = torch.empty_like(groups)
    rank[groups.argsort(stable=True)] = torch.cat([torch.arange(size) for size in sizes])
    is_test = rank % HELD_OUT == HELD_OUT - 1
    if not is_test.any():
        raise DataError(
            f"{place} has no test split, and none of its {len(sizes)} groups (owners or classes) has {HELD_OUT} "
            f"examples, of which one could be held out: add a test split"
        )
    return is_test


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, "split", purpose))

"""Splits by a Dirichlet distribution over classes, as flwr-datasets draws them."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from heterofl_flwr.core.seeds import derive
from heterofl_flwr.errors import DataError

LEAST = 2
"""Fewest examples of a client: batch norm cannot normalise a single one."""


def dirichlet(targets: Tensor, clients: int, alpha: float, seed: int) -> tuple[Tensor, ...]:
    """Return each client's rows, from flwr-datasets' ``DirichletPartitioner``.

    Parameters
    ----------
    targets : Tensor
        The class of each example.
    clients : int
        How many clients there are; each gets 2 examples or more.
    alpha : float
        The concentration: the smaller it is, the fewer classes dominate a client.
    seed : int
        Another seed gives another deal.
    """
    from datasets import Dataset  # type: ignore[import-untyped]  # loads slowly
    from flwr_datasets.partitioner import DirichletPartitioner  # type: ignore[import-untyped]

    table = Dataset.from_dict({"label": targets.numpy(), "row": range(len(targets))})
    try:
        partitioner = DirichletPartitioner(
            clients, "label", float(alpha), min_partition_size=LEAST, seed=derive(seed, "split", "dirichlet")
        )
        partitioner.dataset = table
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each draw that is done again; it says no more than that
            return tuple(torch.tensor(partitioner.load_partition(client)["row"][:]) for client in range(clients))
    except ValueError as error:
        raise DataError(
            f"{len(targets)} examples cannot be split for {clients} clients by dirichlet-{alpha:g}, {LEAST} or more "
            f"for each: use fewer clients or a larger alpha ({error})"
        ) from error


def matching_shares(targets: Tensor, rows: Sequence[Tensor], test_targets: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Return each client's rows of a test split, of every class the share that it has of the train split.

    Parameters
    ----------
    targets : Tensor
        The class of each example of the train split.
    rows : Sequence[Tensor]
        Each client's rows of the train split; together, all of them.
    test_targets : Tensor
        The class of each example of the test split.
    seed : int
        Draws which examples a client gets.
    """
    generator = torch.Generator().manual_seed(derive(seed, "split", "shares"))
    parts: list[list[Tensor]] = [[] for _ in rows]
    for name in targets.unique().tolist():
        held = torch.tensor([int((targets[mine] == name).sum()) for mine in rows])
        tested = torch.nonzero(test_targets == name).flatten()
        tested = tested[torch.randperm(len(tested), generator=generator)]
        # Rounding the running total, not each share, deals every example once.
        ends = (held.cumsum(0).double() / held.sum() * len(tested)).round().long()
        for mine, part in zip(parts, tested.tensor_split(ends[:-1]), strict=True):
            mine.append(part)
    return tuple(torch.cat(mine) for mine in parts)

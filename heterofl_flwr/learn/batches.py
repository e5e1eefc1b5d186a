"""Cut data into batches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from heterofl_flwr.core.seeds import derive
from heterofl_flwr.data.augment import AUGMENTS, check_augment
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError


def batch_rows(order: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Cut row numbers in batches.

    A last batch of one row is joined to the batch before it, for batch norm cannot normalise a single value. (The
    authors' code stops with an error there; their numbers of samples never lead to it.)
    """
    pieces = list(order.split(batch_size))
    if batch_size > 1 and len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def input_batches(split: Split, batch_size: int, *, seed: int | None = None, augment: str = "none") -> Iterator[Tensor]:
    """Yield a split's inputs without targets, once: what ``heterofl_flwr.nn.collect_moments`` reads.

    Parameters
    ----------
    split : Split
        The data, on the model's device.
    batch_size : int
        Inputs in a batch; a last one alone is joined to the batch before it.
    seed : int | None
        Shuffles the inputs; None leaves them in order.
    augment : str
        How images are varied, as in training.
    """
    check_augment(augment)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    generator = torch.Generator().manual_seed(derive(seed or 0, "moments"))
    order = torch.arange(len(split)) if seed is None else torch.randperm(len(split), generator=generator)
    for rows in batch_rows(order.to(split.inputs.device), batch_size) if len(split) else ():
        yield AUGMENTS[augment](split.inputs[rows], generator, split.black)

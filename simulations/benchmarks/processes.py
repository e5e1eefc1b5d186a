"""A process for one side of a comparison, so that what one side sets in its process helps or hurts no other."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch


def own_process(threads: int) -> ProcessPoolExecutor:
    """Return a process that lasts as long as this is open, with its own number of torch threads."""
    # Spawned, because a fork of a process that has used torch may hang.
    return ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,))

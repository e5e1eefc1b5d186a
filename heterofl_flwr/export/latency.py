"""How long one example takes on this machine."""

import statistics
from time import perf_counter

from heterofl_flwr.export.inputs import Inputs
from heterofl_flwr.export.runs import Run
from heterofl_flwr.nn.threads import torch_threads

WARM_UP = 10
"""Runs that do not count: the first ones allocate memory and choose kernels."""


def median_milliseconds(run: Run, inputs: Inputs, runs: int) -> float:
    """Return the median time of so many runs on the first example, on one thread."""
    one = inputs.map(lambda tensor: tensor[:1])
    times = []
    with torch_threads(1):
        for number in range(WARM_UP + runs):
            start = perf_counter()
            run(one)
            if number >= WARM_UP:
                times.append(perf_counter() - start)
    return 1000 * statistics.median(times)

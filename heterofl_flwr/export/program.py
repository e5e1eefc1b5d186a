"""The format ``pt2``: a program of ``torch.export``, which runs wherever torch does, without the model's code."""

from pathlib import Path

import torch
from torch import Tensor

from heterofl_flwr.export.inputs import Inputs, outputs_of
from heterofl_flwr.export.runs import Run
from heterofl_flwr.export.tracing import Traced


def write_program(traced: Traced, path: Path) -> None:
    """Write the program."""
    torch.export.save(traced.program, path)


def open_program(traced: Traced, path: Path) -> Run:
    """Read the program again and return what runs it."""
    module = torch.export.load(path).module()

    def run(inputs: Inputs) -> list[Tensor]:
        return outputs_of(module, inputs)

    return run

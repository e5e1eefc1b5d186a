"""Weights at random in which every parameter matters: fresh models have heads of zeros and blocks that hardly count."""

import math

import torch
from torch import nn


@torch.no_grad()
def make_lively(model: nn.Module, seed: int) -> None:
    """Draw all parameters, and the running statistics of batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.dim() > 1:
                deviation = math.sqrt(2 / parameter[0].numel())  # by the inputs of a row, so that no signal fades
                parameter.normal_(0, deviation, generator=generator)
            elif name == "weight":  # of a norm
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
        for name, buffer in layer.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.normal_(0, 0.1, generator=generator)
            elif name == "running_var":
                buffer.uniform_(0.5, 1.5, generator=generator)

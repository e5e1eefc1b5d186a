"""The engine ``compile``: ``plain`` with ``torch.compile``."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.training.engines.plain import train_one
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult


def train_compiled(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients one after the other with compiled code.

    Results equal those of ``plain``, except for rounding and the random numbers of dropout. Batches of another size
    than ``batch_size`` run without compilation. After eight compilations (``torch._dynamo.config.recompile_limit``),
    further models run without compilation too. On a CPU, torch needs a C++ compiler.

    Raises
    ------
    DivergedError
        If a loss is NaN or infinite.
    """
    return [train_one(job, options, partial(_forward, job.model, options.batch_size)) for job in jobs]


def _forward(model: nn.Module, batch_size: int, inputs: Tensor) -> Tensor:
    if len(inputs) != batch_size:
        logits: Tensor = model(inputs)
        return logits
    torch.compiler.cudagraph_mark_step_begin()
    # Views, because torch assumes that a parameter keeps its address: it would record a CUDA graph for each client.
    trained = {
        f"{path}.{name}".lstrip("."): value.view_as(value)
        for path, layer in model.named_modules()
        for name, value in layer.named_parameters(recurse=False, remove_duplicate=False)
        if value.requires_grad
    }
    return _compiler()(model, trained, inputs)


@cache
def _compiler() -> Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]:
    """Return the compiled form of ``_call``. The first call imports torch's compiler."""
    return torch.compile(_call, dynamic=False, mode="reduce-overhead")  # on a GPU, with CUDA graphs


def _call(model: nn.Module, trained: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    # With tie_weights, torch would not restore the parameters of a layer that has two names.
    logits: Tensor = functional_call(model, dict(trained), (inputs,), tie_weights=False)
    return logits

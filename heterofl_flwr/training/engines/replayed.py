"""Steps on a GPU that are recorded once and then replayed."""

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

WARM_UP = 3
"""Calls before one is recorded: libraries initialise in them, and that cannot be recorded."""


class Replayed:
    """A function of tensors on a GPU whose kernels are recorded, and then launched at once as a CUDA graph.

    A training step of small models is hundreds of kernels, each of which the CPU launches more slowly than the GPU runs
    it. What is replayed computes with the memory that it was recorded with: what else the function reads and writes,
    such as parameters, must stay where it is. What it does beside computing, such as counting its calls, is not
    repeated. Inputs of other shapes than those recorded run as they are, and so does everything if the function cannot
    be recorded, because it reads a value back, say; then ``obstacle`` says why.

    It is recorded on ``stream``, and replayed on the current one. Functions with one ``pool`` share memory for
    intermediate values, so no two of them may run at once.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], stream: torch.cuda.Stream, pool: Any = None
    ) -> None:
        self.obstacle = ""
        self._function, self._warm_up = function, WARM_UP
        self._stream, self._pool = stream, pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns for these inputs."""
        if self._warm_up:
            self._warm_up -= 1
            return self._run_aside(inputs)
        if self._graph is None and not self.obstacle:
            self._record(inputs)
        if self._graph is None or [value.shape for value in inputs] != [value.shape for value in self._inputs]:
            return self._function(*inputs)
        for recorded, value in zip(self._inputs, inputs, strict=True):
            recorded.copy_(value)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)  # the next replay overwrites them

    def _run_aside(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run the function on the stream that is recorded later, as autograd and libraries tell streams apart."""
        usual = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        usual.wait_stream(self._stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Record the function without running it."""
        graph, self._inputs = torch.cuda.CUDAGraph(), tuple(value.clone() for value in inputs)
        draws = _host_draws()
        # cuBLAS has a workspace for each of torch's 32 streams, which graphs of one stream would share. One that is
        # made while a graph is recorded lies in the memory of that graph.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # The outer context gives the stream back if recording fails. Other threads may compute meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._stream.device)),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:  # torch's, of CUDA
            for cause in (error, error.__context__):
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            self.obstacle = str(error).partition("\n")[0]
        else:
            if draws == _host_draws():
                self._graph = graph
            else:
                self.obstacle = "it draws random numbers on the CPU"
        finally:
            torch._C._cuda_clearCublasWorkspaces()


def _host_draws() -> bytes:
    """Return the states of the CPU's generators."""
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()  # noqa: NPY002 - models may draw
    return pickle.dumps(states)

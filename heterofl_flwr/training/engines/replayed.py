"""Replay of a function of GPU tensors as a CUDA graph."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.common.errors import first_line
from heterofl_flwr.training.device import random_states

WARM_UP = 3
"""Number of calls before recording. They initialise libraries; an initialisation cannot be recorded.

The last of these calls finds out whether the function can be recorded.
"""


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Within this context, torch raises ``RuntimeError`` if an operation waits for a GPU."""
    usual = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that some operations wait without an error
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(usual)


class Replayed:
    """Callable that records the GPU kernels of ``function`` once, and then replays them as a CUDA graph.

    All tensors that the function uses besides its inputs must keep their addresses. A replay does not run the
    function's Python code again. Calls with inputs of another shape than the recorded inputs run without the graph.
    If memory runs out during the recording, ``OutOfMemoryError`` is raised. If the function cannot be recorded,
    ``obstacle`` is the reason, and all calls run without a graph; a call that has found the obstacle may have run the
    function a second time. Functions with the same ``pool`` share memory: never run them at the same time.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], stream: torch.cuda.Stream, pool: Any = None
    ) -> None:
        self.obstacle = ""
        self._function, self._warm_up = function, WARM_UP
        self._stream, self._pool = stream, pool or torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the function's results. The first ``WARM_UP`` calls run without a graph."""
        if self._warm_up:
            self._warm_up -= 1
            return self._run_aside(inputs, self._function if self._warm_up else self._try)
        if self._graph is None and not self.obstacle:
            self._record(inputs)
        if self._graph is None or [value.shape for value in inputs] != [value.shape for value in self._inputs]:
            return self._function(*inputs)
        for recorded, value in zip(self._inputs, inputs, strict=True):
            recorded.copy_(value)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)  # the next replay overwrites them

    def _run_aside(self, inputs: tuple[Tensor, ...], function: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Run ``function`` on the recording stream.

        Autograd and libraries thereby set up their state for this stream.
        """
        usual = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            outputs = function(*inputs)
        usual.wait_stream(self._stream)
        return outputs

    def _try(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the function. Set ``obstacle`` if it waits for the GPU or draws random numbers on the CPU."""
        cpu = torch.device("cpu")  # not the GPU, on which each replay draws new numbers
        states = random_states(cpu)
        try:
            with refusing_to_wait():
                outputs = self._function(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.obstacle = first_line(error)
            return self._function(*inputs)
        if states != random_states(cpu):
            self.obstacle = "it draws random numbers on the CPU"
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Record the kernels without running them.

        If memory runs out, raise ``OutOfMemoryError``. If the recording fails for another reason, set ``obstacle``.
        """
        graph, self._inputs = torch.cuda.CUDAGraph(), tuple(value.clone() for value in inputs)
        # cuBLAS has a workspace for each of torch's 32 streams, which graphs of one stream would share. A workspace
        # that is created during recording is part of the graph's memory.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # The outer context restores the stream if recording fails. Other threads may compute meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._stream.device)),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:  # CUDA errors of torch
            self._end_recording()
            # After a failure, the end of the recording fails too, with an error that does not tell the cause.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            self.obstacle = first_line(cause)
        else:
            self._graph = graph
        finally:
            torch._C._cuda_clearCublasWorkspaces()

    def _end_recording(self) -> None:
        """Tell the allocator that a failed recording has ended; from version 2.13, torch does so itself.

        Otherwise, the allocator would not return memory to the GPU any more: ``torch.cuda.empty_cache`` would fail, or
        do nothing.
        """
        if torch.__version__ < "2.13":
            with suppress(RuntimeError):  # the recording has ended without a CUDA error
                torch._C._cuda_endAllocateToPool(self._stream.device.index, self._pool)
                torch._C._cuda_releasePool(self._stream.device.index, self._pool)

"""Record the work of a step on a GPU once, to launch all of it at once again and again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from heterofl_flwr.errors import ConfigError, HeteroFLError

Replay = Callable[[], None]
"""Does what was recorded again, in the same tensors."""


class UncapturableError(HeteroFLError):
    """A training step does what a CUDA graph cannot hold."""


_ALONE = threading.Lock()  # torch captures one graph at a time in a process


class Recorder(Protocol):
    """Records the steps of one model."""

    def place(self) -> AbstractContextManager[None]:
        """Return the context in which steps run, are recorded and are replayed."""

    def record(self, step: Callable[[], None]) -> Replay:
        """Record a step that has run before; it may read and write only tensors that stay where they are."""


class CudaRecorder:
    """Records CUDA graphs: on a stream of their own, as torch wants it, and in one pool of memory.

    The graphs of a pool may be replayed in any order, because a step leaves nothing in it for the next one.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f"engine is graph, and the model is on {device}: CUDA graphs exist on a CUDA device alone; use engine "
                "auto or plain"
            )
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Compute on the stream, after all that was asked for before, and before all that is asked for after."""
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Replay:
        """Capture a step."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may train other models meanwhile: what they do is no fault of this capture.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        first: Exception | None = None
        try:
            with _ALONE, capture:
                try:
                    step()
                except Exception as error:
                    first = error  # the end of a broken capture fails once more, and says less
                    raise
        except RuntimeError as error:
            cause = first or error
            if isinstance(cause, torch.OutOfMemoryError) or not isinstance(cause, RuntimeError):
                raise cause from None
            raise UncapturableError(str(cause).strip().partition("\n")[0]) from cause
        return graph.replay

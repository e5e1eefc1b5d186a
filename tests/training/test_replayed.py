"""Functions that a GPU records and replays: they compute what they computed before, or run as they are."""

from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from torch.torch_version import TorchVersion

from heterofl_flwr.training.engines.replayed import WARM_UP, Replayed
from heterofl_flwr.training.options import TrainOptions
from heterofl_flwr.training.step import SGD

gpu = pytest.mark.gpu


class Line:
    """Steps of SGD on a line's slope, which is held in the memory that was recorded."""

    def __init__(self, device: str, *, reads_back: bool = False) -> None:
        self.slope = torch.ones(1, 2, device=device)
        self.sgd = SGD([self.slope], TrainOptions(learning_rate=0.1), by_row=True)
        self.calls, self._reads_back = 0, reads_back

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        slope = self.slope.detach().requires_grad_()
        loss = ((inputs * slope).sum(1) - targets).square().mean()
        if self._reads_back and not loss.isfinite():
            raise AssertionError
        loss.backward()
        self.sgd.step([slope.grad])
        return loss.detach(), targets.max()


def compare(line: Line, sizes: list[int]) -> Replayed:
    """Run as many steps as there are sizes, each on its own numbers, beside the same on the CPU."""
    twin, replayed = Line("cpu"), Replayed(line.step, torch.cuda.Stream())
    kept = []
    for seed, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = torch.randn(size, 2, generator=generator), torch.randn(size, generator=generator)
        kept.append((replayed(inputs.cuda(), targets.cuda()), twin.step(inputs, targets)))
    for outputs, expected in kept:
        for output, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output.cpu(), other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(line.slope.cpu(), twin.slope, rtol=1e-4, atol=1e-5)
    return replayed


@gpu
def test_a_function_is_recorded_once_and_computes_with_what_is_in_memory_now():
    line = Line("cuda")
    assert not compare(line, [5] * 12).obstacle
    assert line.calls == WARM_UP + 1


@gpu
def test_inputs_of_another_shape_run_as_they_are():
    line = Line("cuda")
    assert not compare(line, [5] * 6 + [3] + [5] * 3 + [7]).obstacle
    assert line.calls == WARM_UP + 1 + 2


@gpu
def test_what_reads_a_value_back_runs_as_it_is_and_leaves_the_stream_as_it_was():
    line, usual = Line("cuda", reads_back=True), torch.cuda.current_stream()
    assert compare(line, [5] * 12).obstacle
    assert line.calls == 13  # the one that failed too
    assert torch.cuda.current_stream() == usual


class Recording:
    """A recording whose end fails too if it has failed, as in CUDA."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        pass

    def __exit__(self, kind, *_):
        if kind:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture
def modes(monkeypatch) -> list[object]:
    """Return the list of all modes of waiting operations, the current one last; nothing else of CUDA is there."""
    seen: list[object] = [0]
    for name, fake in (
        ("CUDAGraph", Mock()),
        ("graph", Recording),
        ("graph_pool_handle", Mock()),
        ("stream", nullcontext),
        ("current_stream", Mock()),
        ("get_sync_debug_mode", lambda: seen[-1]),
        ("set_sync_debug_mode", seen.append),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, Mock(), raising=False)
    return seen


@pytest.fixture
def recorder(modes):
    """Return a function that replays another one, whose recording fails with an error."""

    def replay(error: Exception) -> Replayed:
        replayed = Replayed(Mock(side_effect=[()] * WARM_UP + [error, ()]), Mock())
        for _ in range(WARM_UP + 1):
            assert replayed() == ()
        return replayed

    return replay


def test_the_obstacle_is_the_error_that_ended_the_recording(recorder):
    error = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nmore")
    assert recorder(error).obstacle == "AcceleratorError: CUDA error: operation not permitted when stream is capturing"


@pytest.mark.parametrize(("version", "ends"), [("2.11.0+cu130", 1), ("2.13.0", 0)])
def test_the_allocator_knows_that_a_recording_has_failed(recorder, monkeypatch, version, ends):
    """Torch before 2.13 does not tell it, and then no other seat can be made."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    recorder(torch.AcceleratorError("CUDA error"))
    assert [torch._C._cuda_endAllocateToPool.call_count, torch._C._cuda_releasePool.call_count] == [ends] * 2


def test_what_waits_for_the_gpu_is_found_before_a_recording(modes):
    """A recording that fails is not tried."""
    calls = []

    def wait(number):
        calls.append(modes[-1])
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")
        return (number,)

    replayed = Replayed(wait, Mock())
    assert [replayed(number) for number in range(5)] == [(number,) for number in range(5)]
    assert replayed.obstacle == "RuntimeError: called a synchronizing CUDA operation"
    assert calls == [0, 0, "error", 0, 0, 0]
    torch.cuda.CUDAGraph.assert_not_called()


def test_draws_on_the_cpu_are_found_before_a_recording(modes):
    replayed = Replayed(lambda: (torch.rand(()),), Mock())
    assert len({replayed() for _ in range(WARM_UP + 2)}) == WARM_UP + 2
    assert replayed.obstacle == "it draws random numbers on the CPU"
    torch.cuda.CUDAGraph.assert_not_called()


def test_memory_that_runs_out_in_a_recording_is_no_obstacle(recorder):
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        recorder(torch.OutOfMemoryError("no memory"))

"""Functions that a GPU records and replays: they compute what they computed before, or run as they are."""

import pytest
import torch

from heterofl_flwr.training.engines.replayed import WARM_UP, Replayed
from heterofl_flwr.training.options import TrainOptions
from heterofl_flwr.training.step import SGD

pytestmark = pytest.mark.gpu


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


def test_a_function_is_recorded_once_and_computes_with_what_is_in_memory_now():
    line = Line("cuda")
    assert not compare(line, [5] * 12).obstacle
    assert line.calls == WARM_UP + 1


def test_inputs_of_another_shape_run_as_they_are():
    line = Line("cuda")
    assert not compare(line, [5] * 6 + [3] + [5] * 3 + [7]).obstacle
    assert line.calls == WARM_UP + 1 + 2


def test_what_reads_a_value_back_runs_as_it_is_and_leaves_the_stream_as_it_was():
    line, usual = Line("cuda", reads_back=True), torch.cuda.current_stream()
    assert compare(line, [5] * 12).obstacle
    assert line.calls == 13  # the one that failed too
    assert torch.cuda.current_stream() == usual

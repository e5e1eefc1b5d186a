"""Clients that diverge spoil nobody's work."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.training import DivergedError, TrainingJob
from heterofl_flwr.training.engines import wide as registry
from heterofl_flwr.training.engines.cohort import Cohort, CohortDivergedError, train_cohort
from heterofl_flwr.training.engines.joint import Wide
from heterofl_flwr.training.engines.plain import train_plain
from heterofl_flwr.training.engines.wide import joined
from tests.training.cohorts import OPTIONS, exact, jobs, small


def sicken(job: TrainingJob, at: int) -> TrainingJob:
    """Return a client whose step ``at``, counted from 0, meets NaN."""
    generator = torch.Generator().manual_seed(derive(job.seed, "batches"))
    row = torch.randperm(len(job.split), generator=generator)[at * OPTIONS.batch_size]
    job.split.inputs[row] = torch.nan
    return job


def test_a_client_that_diverges_falls_out_and_the_others_are_trained():
    clients = jobs(exact(small()))
    sicken(clients[1], 2)
    options = replace(OPTIONS, epochs=3)
    with pytest.raises(DivergedError, match=r"^client 2 of 4: the loss of step 3 is nan at learning") as caught:
        train_cohort(clients, options)
    assert isinstance(caught.value, CohortDivergedError)
    outcomes = caught.value.outcomes
    twins = jobs(exact(small()))
    healthy = [0, 2, 3]
    expected = train_plain([twins[number] for number in healthy], options)
    for number, result in zip(healthy, expected, strict=True):
        assert outcomes[number].loss == pytest.approx(result.loss, rel=1e-6)
        for ours, theirs in zip(clients[number].model.parameters(), twins[number].model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    sick = sicken(jobs(exact(small()))[1], 2)
    with pytest.raises(DivergedError) as alone:
        train_plain([sick], options)
    assert str(alone.value) == str(outcomes[1])


def test_all_may_diverge_each_at_its_own_step():
    clients = jobs(small(), (20, 20))
    sicken(clients[0], 1)
    sicken(clients[1], 3)
    with pytest.raises(CohortDivergedError, match=r"client 1 of 2: the loss of step 2 .*; client 2 of 2: .* step 4"):
        train_cohort(clients, OPTIONS)


def test_divergence_is_found_in_the_epoch_where_it_happens(monkeypatch):
    taken = []
    step = Cohort._step
    monkeypatch.setattr(Cohort, "_step", lambda self, *args: taken.append(args[2]) or step(self, *args))
    clients = jobs(small(norm="none"), (20, 20))
    with torch.no_grad():
        clients[0].model.linear.weight.mul_(1e30)
    options = replace(OPTIONS, epochs=5, clip=None, momentum=0.0)
    result = Cohort(clients, options, Wide).train()
    assert result[0] is None
    assert taken == [[0, 1]] * 4 + [[1]] * 16


class Leak(nn.Module):
    """A layer without effect; side by side it lets NaN in one client's gradient through to all, as some kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_what_diverges_spoils_no_other_even_where_nan_leaks(monkeypatch):
    class WideLeak(nn.Module):
        def __init__(self, layer: nn.Module, clients: int) -> None:
            super().__init__()
            self.weight = joined(layer, clients).weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * self.weight.repeat_interleave(x.shape[1] // len(self.weight))
            y.register_hook(lambda gradient: gradient + 0 * gradient.sum())
            return y

    monkeypatch.setitem(registry._rules, Leak, WideLeak)

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), Leak(), nn.Linear(8, 5))

    for at in (1, 3):  # in the last step nobody's loss comes after it
        clients = jobs(build, (20, 20))
        sicken(clients[0], at)
        with pytest.raises(CohortDivergedError) as caught:
            train_cohort(clients, replace(OPTIONS, epochs=1))
        twin = jobs(build, (20, 20))[1]
        assert caught.value.outcomes[1] == train_plain([twin], replace(OPTIONS, epochs=1))[0]
        assert all(map(torch.equal, clients[1].model.parameters(), twin.model.parameters()))


def test_the_error_of_a_cohort_can_be_pickled():
    clients = jobs(small(), (20, 20))
    sicken(clients[1], 0)
    with pytest.raises(CohortDivergedError) as caught:
        train_cohort(clients, OPTIONS)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.outcomes[0] == caught.value.outcomes[0]

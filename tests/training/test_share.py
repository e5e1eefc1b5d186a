"""A client that takes only a share of its steps: which they are, and that all engines agree."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.data import Reading, Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.training import TrainingJob, TrainOptions
from heterofl_flwr.training.batches import count_steps, steps_per_epoch, training_batches, training_epochs
from heterofl_flwr.training.distill import DistillOptions, learn_from_peers
from heterofl_flwr.training.engines.cohort import Cohort
from heterofl_flwr.training.engines.graph import GraphEngine
from heterofl_flwr.training.engines.joint import Vmapped, Wide
from heterofl_flwr.training.engines.plain import train_plain
from tests.training.cohorts import OPTIONS, assert_as_plain, exact, images, jobs, small, state
from tests.training.conftest import train_slowly
from tests.training.test_graph import Tape


def shared(clients: list[TrainingJob], *shares: float) -> list[TrainingJob]:
    return [replace(job, step_share=share) for job, share in zip(clients, shares, strict=True)]


def text(rows: int, words: int) -> Split:
    tokens = torch.arange(rows * words).reshape(rows, words) % 7
    return Split(tokens, tokens, reading=Reading(hides_as=7, length=8))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9])
def test_plain_stops_where_the_slow_twin_does(build, split, share):
    model, twin = build(norm="gn"), build(norm="gn")
    (result,) = train_plain([TrainingJob(model=model, split=split, seed=3, step_share=share)], OPTIONS)
    steps = {0.01: 1, 0.3: 3, 0.5: 5, 0.9: 9}[share]  # of 2 epochs of 5
    losses, sizes, correct = train_slowly(twin, split, OPTIONS, None, 3, most=steps)
    assert (result.examples, result.steps, len(losses)) == (23, steps, steps)
    assert result.accuracy == correct / sum(sizes)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@given(
    examples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    share=st.floats(0.001, 1.0),
    words=st.none() | st.integers(1, 20),
)
def test_its_batches_are_the_first_of_all(examples, batch_size, epochs, share, words):
    options = TrainOptions(learning_rate=1.0, epochs=epochs, batch_size=batch_size)
    own = Split(torch.arange(examples).float(), torch.arange(examples)) if words is None else text(examples, words)
    job = TrainingJob(model=torch.nn.Identity(), split=own, seed=1, step_share=share)
    whole = [batch for epoch in training_epochs(replace(job, step_share=1.0), options) for batch in epoch]
    part = [batch for epoch in training_epochs(job, options) for batch in epoch]
    single = list(training_batches(own, options, torch.Generator()))
    assert len(single) == steps_per_epoch(own, batch_size)
    assert len(whole) == len(single) * epochs
    assert len(part) == count_steps(job, options)
    assert len(whole) * share <= len(part) < len(whole) * share + 1
    for one, other in zip(part, whole, strict=False):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_share_in_decimals_is_rounded_up_from_what_it_says():
    job = TrainingJob(model=torch.nn.Identity(), split=images(30, 0), seed=1, step_share=0.1)
    assert job.share_of(30) == 3  # in floats 0.1 * 30 is over 3
    assert job.share_of(31) == 4


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ConfigError, match=r"step_share is .*; expected a number over 0 and up to 1"):
        TrainingJob(model=torch.nn.Identity(), split=images(3, 0), seed=1, step_share=share)


@pytest.mark.parametrize("way", [Wide, Vmapped])
@pytest.mark.parametrize("shares", [(0.1, 1.0, 0.5, 0.75), (0.01, 0.01, 0.01, 0.01)])
def test_clients_of_different_shares_train_together(way, shares):
    build = exact(small(norm="gn", rate=0.5))
    clients, twins = shared(jobs(build), *shares), shared(jobs(build), *shares)
    assert_as_plain(clients, Cohort(clients, OPTIONS, way).train(), OPTIONS, twins)


def test_a_recorded_step_is_taken_as_often(split, build):
    job = TrainingJob(model=build(norm="gn"), split=split, seed=3, step_share=0.6)
    twin, options = replace(job, model=build(norm="gn")), replace(OPTIONS, epochs=3)
    assert_as_plain([job], [GraphEngine(Tape).train(job, options)], options, [twin], tolerance=1e-4)


def test_of_the_seed_steps_too_it_takes_its_share():
    (job,), (twin,) = jobs(small(), sizes=(12,)), jobs(small(), sizes=(12,))
    seeds, nobody = (images(6, 9).inputs, images(6, 9).targets), torch.zeros(0, 6, 5)
    learn_from_peers(replace(job, step_share=0.3), seeds, nobody, OPTIONS, DistillOptions(steps=10))
    learn_from_peers(twin, seeds, nobody, OPTIONS, DistillOptions(steps=3))
    assert all(torch.equal(value, state(twin)[name]) for name, value in state(job).items())

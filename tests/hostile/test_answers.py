"""Answers of bad faith to the server's questions, in both APIs, and to FedH2L: one of three clients is hostile."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp
from hypothesis import given, strategies as st

from heterofl_flwr import DistillOptions, Evaluation, FedH2L, Fidelity
from tests.federation.tiny import build, build_normed
from tests.hostile import changes as to
from tests.hostile.servers import CLIENTS, ClassicServer, Envelope, Forging, MessageServer
from tests.hostile.test_replies import archive

pytestmark = pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")  # numpy's, of what is sent
KINDS = pytest.mark.parametrize(("api", "kind"), [(ClassicServer, "paper"), (MessageServer, "fixed")])


def fail(envelope):
    """Give no answer that can be used."""
    envelope.config["capacity"] = "none"
    envelope.arrays = {"moments": {}}


def levels(api, grid, assignment, change):
    """Return the rates of a round whose clients had said what they can hold, one of them with a change."""
    server = api(build, "a1-c2", grid=grid, assignment=assignment)
    server.register(change)
    return server.ask()


def moments(api, grid, kind, change):
    """Return the sum of all clients' moments, one of them with a change, and whether these were refused."""
    fidelity = Fidelity.of("paper", moments=kind)
    server = api(build_normed, grid=grid, evaluation=Evaluation(), fidelity=fidelity)
    strategy = getattr(server.strategy, "_inner", server.strategy)
    strategy.is_remote = lambda grid: kind == "paper"  # so that moments are clipped to the median
    server.ask()
    refused = server.collect(change)
    return strategy.moments[1.0], refused


@cache
def without(found, api, grid, option):
    """Return what is found where the hostile client gives no usable answer."""
    return found(api, grid, option, fail)


@pytest.mark.parametrize(("api", "assignment"), [(MessageServer, "fix"), (ClassicServer, "dynamic")])
@given(change=to.of_config)
def test_no_answer_changes_the_levels_of_others(api, grid, assignment, change):
    first, own, last = levels(api, grid, assignment, change)
    assert [first, last] == without(levels, api, grid, assignment)[::2]
    assert own in (1.0, 0.25)


def check_moments(api, grid, kind, change):
    """Check the sum of moments with a change, and return whether they were refused."""
    found, refused = moments(api, grid, kind, change)
    mean, variance = found.statistics("norm")
    assert mean.isfinite().all()
    assert (variance.isfinite() & (variance >= 0)).all()
    if refused:
        expected = without(moments, api, grid, kind)[0].to_tensors()
        assert all(torch.equal(own, expected[name]) for name, own in found.to_tensors().items())
    return refused


def impossible(count, first, second, envelope):
    """Send moments of the right form that no data have."""
    arrays = next(iter(envelope.arrays.values()))
    values = [np.array(count), *(np.full(8, value) for value in (first, second))]
    arrays.update({name: Array(value) for name, value in zip(arrays, values, strict=True)})


@KINDS
@pytest.mark.parametrize("make", [archive, lambda array: Array(np.zeros(99)), partial(to.zeros, np.bool_)])
def test_known_attacks_on_moments_are_refused(api, grid, kind, make):
    assert check_moments(api, grid, kind, partial(to.put_array, 1, make))
    assert not check_moments(api, grid, kind, lambda envelope: None)


SUMS = st.sampled_from([0.0, 1.0, -1.0, 1e30, 1e300, -1e300]) | st.floats()
COUNTS = st.sampled_from([0, 1, 2, 8, 2**53, 2**62]) | st.integers(-(2**63), 2**63 - 1)


@KINDS
@given(change=st.builds(partial, st.just(impossible), COUNTS, SUMS, SUMS) | to.changes)
def test_moments_are_refused_or_leave_sound_statistics(api, grid, kind, change):
    check_moments(api, grid, kind, change)


def publish(values, envelope):
    envelope.arrays["posteriors"]["posteriors"] = Array(np.array([values, values], np.float32))


POSTERIORS = st.builds(partial, st.just(publish), st.lists(st.floats(width=32), min_size=3, max_size=3))


@given(change=POSTERIORS | to.changes)
def test_peers_get_distributions_alone(h2l, change):
    grid, strategy = h2l
    asked = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    grid.change = change
    try:
        sent = strategy.relay(grid, asked, 60.0)
    finally:
        grid.change = None
    assert len(sent) in (CLIENTS - 1, CLIENTS)
    for message in sent:
        peers = message.content["posteriors"]["posteriors"].numpy()
        assert len(peers) == len(sent) - 1
        np.testing.assert_allclose(peers.sum(-1), 1.0, atol=1e-3)
        assert (peers >= 0).all()


@pytest.fixture(scope="module")
def h2l():
    app = ClientApp()

    @app.train("publish")
    def _(message: Message, context: object) -> Message:
        said = {"posteriors": {"posteriors": Array(torch.full((2, 3), 1 / 3))}}
        return Envelope(said, {"heterofl-schema": 2}, {"num-examples": 1}).message(message)

    with Forging(app) as grid:
        strategy = FedH2L(3, distill=DistillOptions(seed_size=4, seed_batch=2))
        strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)  # it registers its nodes
        yield grid, strategy

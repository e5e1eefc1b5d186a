"""Replies of bad faith in a round of either API: each counts for what its bytes say, or leaves no trace."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from heterofl_flwr import Robust
from tests.federation.tiny import build
from tests.hostile import changes as to
from tests.hostile.servers import BOUND, CLASSES, CLIENTS, HOSTILE, OPTIONS, ClassicServer, MessageServer

pytestmark = pytest.mark.filterwarnings("ignore:Stored array in format:UserWarning")  # numpy's, of what is sent

FORMS = {"float32": MessageServer, "float16": MessageServer, "int8": MessageServer, "classic": ClassicServer}


@pytest.fixture(scope="module", params=FORMS)
def server(request, grid):
    upload = {} if request.param == "classic" else {"upload": request.param}
    server = FORMS[request.param](build, grid=grid, **OPTIONS, **upload)
    server.ask()
    good = {number: server.good(number) for number in range(CLIENTS)}
    server.close([(number, own) for number, own in good.items() if number != HOSTILE])
    server.replies, server.without = good, server.state
    return server


def refused(server, change):
    """Let a round have a changed reply; check the model, and return whether the reply was refused."""
    server.state = server.before
    server.ask()
    envelope = server.replies[HOSTILE].copy()
    change(envelope)
    replies = {**server.replies, HOSTILE: envelope}
    try:
        refused = server.close(list(replies.items()))
    finally:  # what it said of its capacity is forgotten
        server.strategy.federation.nodes.set_capacity(server.hostile, 1.0, rate=1.0)
    if refused:
        assert all(torch.equal(server.state[name], own) for name, own in server.without.items())
    else:
        assert np.isfinite(server.strategy.log.train["loss"])
        check_mean(server, list(replies.values()))
    return refused


def check_mean(server, envelopes):
    """Check that a round's model is the mean of what envelopes say, and that none went further than the bound."""
    before = {name: own.double().numpy() for name, own in server.before.items()}
    subs = [read(own, before) for own in envelopes]
    assert sum(((subs[HOSTILE][name] - own) ** 2).sum() for name, own in before.items()) <= (BOUND * 1.0001) ** 2
    weights = np.array([float(own.metrics.get("num-examples", 0)) for own in envelopes])
    rows = np.array([[label in labels(own) for own in envelopes] for label in range(CLASSES)])  # (classes, clients)
    for name, old in before.items():
        counts = weights * (rows if name.startswith("classifier") else np.ones((len(old), 1)))
        total = sum(counts[:, [own]] * sub[name].reshape(len(old), -1) for own, sub in enumerate(subs))
        mean = total / np.maximum(counts.sum(1, keepdims=True), 1)
        expected = np.where(counts.sum(1, keepdims=True) > 0, mean, old.reshape(len(old), -1))
        np.testing.assert_allclose(server.state[name].numpy(), expected.reshape(old.shape), 1e-4, 1e-5)


def read(envelope, before):
    """Return the parameters that an envelope's bytes say, by numpy's own reader."""
    loaded = {
        record: {
            name: np.load(io.BytesIO(array.data), allow_pickle=False).astype(np.float64) for name, array in own.items()
        }
        for record, own in envelope.arrays.items()
    }
    if "arrays" in loaded:  # the classic API knows their order alone
        own = loaded["arrays"]
        return own if own.keys() == before.keys() else dict(zip(before, own.values(), strict=True))
    changes, scales = loaded["changes"], list(loaded.get("scales", {}).values())
    for name in sorted(changes) if scales else ():
        rows = changes[name].reshape(len(changes[name]) if changes[name].ndim > 1 else 1, -1)
        changes[name] = (rows * scales[0][: len(rows), None]).reshape(changes[name].shape)
        scales[0] = scales[0][len(rows) :]
    return {name: before[name] + change for name, change in changes.items()}


def labels(envelope):
    """Return the classes that an envelope names: a list, the classic API's text, or all."""
    said = envelope.config.get("labels")
    if said is None:
        return range(CLASSES)
    return said if isinstance(said, list) else [int(label) for label in str(said).split(",") if label.strip()]


def archive(array):
    """Put an array into an archive of numpy's, which ``numpy.load`` takes for many."""
    file = io.BytesIO()
    np.savez(file, array.numpy())
    return Array(array.dtype, array.shape, array.stype, file.getvalue())


KNOWN = {
    "an archive of arrays": partial(to.put_array, 0, archive),
    "a row for a column": partial(to.put_array, 1, lambda array: Array(array.numpy()[None])),
    "an array of one entry": partial(to.put_array, 1, lambda array: Array(array.numpy().reshape(-1)[:1])),
    "an array of 20 times the entries": partial(to.put_array, 0, lambda array: Array(np.zeros(6000, np.float32))),
    "whole numbers": partial(to.put_array, 0, partial(to.zeros, np.int64)),
    "Python objects": partial(to.put_array, 0, partial(to.headed, to.OBJECTS, 1)),
    "a header that is code": partial(to.put_array, 0, partial(to.headed, to.CODE, 1)),
    "NaN": partial(to.put_values, 0, 1.0, np.nan),
    "an entry whose sum overflows": partial(to.put_values, None, 1.0, 3e38),
    "a change beyond the bound": partial(to.put_values, None, 1.0, 50.0),
    "no arrays": partial(to.drop, "first"),
    "two thousand arrays more": partial(to.repeat, 2000),
    "labels beyond the classes": partial(to.put, "config", {"labels": "7"}),
    "examples below zero": partial(to.put, "metrics", {"num-examples": -1}),
    "a thousand metrics": partial(to.put, "metrics", {f"loss{number}": 1.0 for number in range(1000)}),
    "a metric whose name moves the cursor": partial(to.put, "metrics", {"\x1b[2J": 1.0}),
}
HARMLESS = {
    "a good reply": lambda envelope: None,
    "more values than were asked for": partial(to.put, "config", {"a": "b", "c": 1}),
    "an array that is stored by columns": partial(
        to.put_array, 0, lambda array: Array(np.asfortranarray(array.numpy()))
    ),
    "lies beside an array": partial(to.put_array, 0, to.labelled),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_attack_is_refused(server, name):
    assert refused(server, KNOWN[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_counts(server, name):
    assert not refused(server, HARMLESS[name])


@given(change=to.changes)
def test_any_reply_counts_as_it_says_or_leaves_no_trace(server, change):
    refused(server, change)


class Rounds(RuleBasedStateMachine):
    """Rounds with a hostile client beside rounds in which it is silent whenever it was refused."""

    make = None

    @initialize()
    def start(self):
        self.number, self.old, (self.tried, self.twin) = 0, None, (self.make(), self.make())

    @rule(change=to.changes, twice=st.booleans(), order=st.permutations(range(CLIENTS)), late=st.booleans())
    def play(self, change, twice, order, late):
        """Send a changed reply, maybe before a good one, maybe after one of an earlier round."""
        self.number += 1
        assert self.tried.ask(self.number) == self.twin.ask(self.number)
        hostile = self.tried.good(HOSTILE)
        change(hostile)
        replies = [(number, hostile if number == HOSTILE else self.tried.good(number)) for number in order]
        old = [(None, self.old)] if late and self.old is not None else []
        again = [(HOSTILE, self.tried.good(HOSTILE))] if twice else []
        refused = self.tried.close([*old, *replies, *again])
        self.twin.close([own for own in replies if not refused or own[0] != HOSTILE])
        assert all(torch.equal(own, self.twin.state[name]) for name, own in self.tried.state.items())
        if isinstance(self.tried, MessageServer):
            self.old = self.tried.good(HOSTILE).message(self.tried.asked[HOSTILE])


@pytest.mark.parametrize(("api", "options"), [(MessageServer, {"robust": Robust()}), (ClassicServer, OPTIONS)])
def test_later_rounds_are_as_if_refused_replies_never_came(api, options, grid):
    machine = type("Machine", (Rounds,), {"make": lambda self: api(build, "a1-b1-c1", grid=grid, **options)})
    run_state_machine_as_test(
        machine, settings=settings(settings(), max_examples=settings().max_examples // 5, stateful_step_count=8)
    )

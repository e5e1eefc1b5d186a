"""Replies in fewer bits: who asks, who answers how, what is refused, and that all else stays as it is."""

import logging
import weakref

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, Windowed
from heterofl_flwr.client import answer_queries, reply, submodel
from heterofl_flwr.errors import RoundError
from heterofl_flwr.stages.server_optimizer import Momentum
from tests.federation import digits_app
from tests.federation.tiny import (
    Keep,
    add_one,
    build,
    equal,
    inputs,
    make_app,
    play,
)

FORMS = ("float16", "int8")


def run(app, nodes=2, num_rounds=1, mix="a1-c1", **options):
    found = play(app, mix, nodes, num_rounds, **options)
    return found.strategy, found.state


def descend(message, context, **said):
    """Train: one step on the node's own data, so that no two entries change alike."""
    model = submodel(message, build)
    model(inputs(context.node_config["partition-id"])).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    return reply(message, model, num_examples=1, **said)


def state_after(upload, train=descend, **options):
    return run(make_app(train), 4, upload=upload, **options)


@pytest.mark.parametrize("upload", FORMS)
def test_the_model_is_nearly_that_of_whole_replies(upload):
    _, exact = state_after("float32", num_rounds=3)
    strategy, found = state_after(upload, num_rounds=3)
    assert strategy.log.failures == {}
    start = strategy.federation.initial_state()
    for name, tensor in exact.items():
        change = tensor - start[name]
        assert 0 < (found[name] - tensor).norm() < change.norm() * {"float16": 1e-3, "int8": 3e-2}[upload], name


def test_the_server_says_in_its_instructions_to_train_what_it_wants():
    for upload in ("float32", *FORMS):
        grid = play(nodes=2, upload=upload, evaluation=Evaluation()).grid
        asked = [message.content["config"].get("upload") for message in grid.of("train")]
        assert asked == [None if upload == "float32" else upload] * 2
        assert not any("upload" in message.content["config"] for message in grid.of("evaluate"))


def test_the_summary_names_the_form(caplog):
    with caplog.at_level(logging.INFO, "heterofl_flwr"):
        HeteroFL(build, upload="int8").summary()
    assert "Replies: int8" in caplog.text


@pytest.mark.parametrize("upload", ["float32", *FORMS])
def test_bytes_are_those_that_travelled(upload):
    sizes = []

    def train(message, context):
        answer = descend(message, context)
        records = answer.content.array_records.values()
        sizes.append(sum(len(array.data) for record in records for array in record.values()))
        return answer

    strategy, _ = state_after(upload, train)
    assert strategy.log.bytes_up == sum(sizes)


@pytest.mark.parametrize("upload", FORMS)
def test_labels_momentum_and_what_nobody_held_count_as_ever(upload):
    def run_it(upload):
        odd = {0: lambda message, context: add_one(message, context, labels=[0, 1])}
        app = make_app(odd=odd, train=lambda m, c: add_one(m, c, labels=[1, 3]))
        return run(app, 2, 2, "b1-c1", upload=upload, stages=[Momentum(server_momentum=0.5)])

    (one, exact), (two, found) = run_it("float32"), run_it(upload)
    assert one.log.rates == two.log.rates
    for name, tensor in exact.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    for name, tensor in one.engine.chain.state().items():
        torch.testing.assert_close(two.engine.chain.state()[name], tensor, atol=1e-5, rtol=0)
    # Nobody has class 2, so its rows are untouched, to the bit.
    assert torch.equal(found["classifier.weight"][2], two.federation.initial_state()["classifier.weight"][2])


@pytest.mark.parametrize("upload", ["float32", *FORMS])
def test_a_client_may_choose_another_form_as_long_as_it_says_so(upload):
    def own_way(message, context):
        message.content["config"]["upload"] = upload
        return descend(message, context)

    _, expected = state_after(upload)
    for asked in ("float32", *FORMS):
        strategy, state = state_after(asked, own_way)
        assert strategy.log.failures == {}
        assert equal(state, expected)


@pytest.mark.parametrize("upload", FORMS)
def test_a_mod_that_takes_changes_for_parameters_fails_loudly(upload):
    app = ClientApp()
    noise = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=10.0, delta=1e-5)
    app.train(mods=[noise])(lambda message, context: descend(message, context))
    answer_queries(app, build)
    with pytest.raises(RoundError, match="0 of 2 clients"):
        run(app, upload=upload)


@pytest.mark.parametrize("upload", ["float32", *FORMS])
def test_a_window_changes_nothing_and_replies_are_freed_one_by_one(upload):
    alive, most = weakref.WeakSet(), []

    def train(message, context):
        most.append(len(alive))
        answer = descend(message, context)
        alive.add(answer)
        return answer

    windowed = state_after(upload, train, wrap=lambda grid: Windowed(grid, 2))[1]
    assert max(most) <= 3  # two in the window, and the one that the strategy has in hand
    assert equal(windowed, state_after(upload, train)[1])


def digits(upload):
    keep = Keep()
    with LocalGrid(digits_app.app, 6) as grid:
        strategy = HeteroFL(digits_app.build, upload=upload, evaluation=Evaluation(every=3), callbacks=[keep])
        strategy.start(grid, num_rounds=3)
    return strategy.log.evaluate["local-accuracy"], (keep.records[0].bytes_down, keep.records[0].bytes_up)


@pytest.mark.slow
def test_digits_are_learnt_as_well_from_fewer_bytes():
    found = {upload: digits(upload) for upload in ("float32", *FORMS)}
    accuracy = {upload: own[0] for upload, own in found.items()}
    assert accuracy["float32"] > 0.6
    assert [accuracy[upload] for upload in FORMS] == pytest.approx([accuracy["float32"]] * 2, abs=0.05)
    (down, whole), (_, half), (_, byte) = (found[upload][1] for upload in ("float32", *FORMS))
    assert down == whole > 1.5 * half > 1.5 * 1.25 * byte  # of such small tensors Flower's headers are a good part

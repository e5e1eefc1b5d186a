"""SCAFFOLD: a slow twin of the paper's algorithm with masks over slices; bytes; and misuse."""

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import FedDyn, HeteroFL, Scaffold
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.report import Recorder, RunFolder
from heterofl_flwr.stages.scaffold import STEP
from tests.federation.tiny import Watched, equal, make_app as make_tiny_app, play
from tests.stages.quadratic import NODES, RATE, RATES, SIZES, build, make_app, minimum_of, rounds_of


def steps_of(partition):
    """Return the number of local steps of a client."""
    return 2 + partition % 3


app = make_app(steps_of)
MIX = "a1-b1-c1"


def run(app=app, num_rounds=5, **options):
    options = {"learning_rate": lambda _: RATE, "stages": [Scaffold()], "fraction_train": 0.5, **options}
    return play(app, MIX, NODES, num_rounds, build=build, **options)


def mask_of(rate, name, shape):
    """Return the entries of a parameter that a client of a rate holds, as 0 and 1."""
    mask = np.zeros(shape)
    if name.startswith("hidden"):
        mask[: SIZES[rate]] = 1
    elif name == "classifier.weight":
        mask[:, : SIZES[rate]] = 1
    else:
        mask[:] = 1
    return mask


class Losing(Watched):
    """A grid that loses the first reply to training in round 2."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        is_hit = messages[0].content["config"]["server-round"] == 2 and messages[0].metadata.message_type == "train"
        yield from list(super().send_and_receive(messages, timeout=timeout))[int(is_hit) :]


@pytest.mark.parametrize("grid", [Watched, Losing])
def test_it_equals_a_slow_twin_over_full_tensors_with_masks(grid):
    found = run(grid=grid)
    drawn_in = [
        [client for client in drawn if client not in record.failures]
        for drawn, record in zip(rounds_of(found.grid), found.records, strict=True)
    ]
    lost = [client for record in found.records for client in record.failures]
    assert len(lost) == (grid is Losing)
    assert set(lost) <= {client for drawn in drawn_in[2:] for client in drawn}
    start = {
        name: own.detach().numpy().copy()
        for name, own in HeteroFL(build, MIX).federation.architecture.initial_state().items()
    }
    for name, x in start.items():
        c, controls = np.zeros_like(x), [np.zeros_like(x) for _ in range(NODES)]
        masks = [mask_of(rate, name, x.shape) for rate in RATES[MIX]]
        for drawn in drawn_in:
            total, changes, holders = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
            for client in drawn:
                y, minimum, steps = x.copy(), minimum_of(client, 1.0)[name].numpy(), steps_of(client)
                for _ in range(steps):
                    y = y - RATE * (y - minimum - controls[client] + c)  # algorithm 1, line 10
                control = controls[client] - c + (x - y) / (steps * RATE)  # line 12, option II
                changes += masks[client] * (control - controls[client])
                controls[client] = control * masks[client]
                total += masks[client] * y
                holders += masks[client]
            x = np.where(holders > 0, total / np.maximum(holders, 1), x)
            c = c + changes / np.maximum(sum(masks), 1)
        np.testing.assert_allclose(found.state[name].numpy(), x, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.strategy.chain.state()[f"Scaffold/{name}"].numpy(), c, rtol=0, atol=1e-9)


class Returning(Losing):
    """A grid on which the node whose reply is lost comes back under another id."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        lost = {own.metadata.dst_node_id for own in messages} - {own.metadata.src_node_id for own in replies}
        for node_id in lost:
            self._node_configs[node_id + 1] = config = self._node_configs.pop(node_id)
            self._contexts[node_id + 1] = Context(self.run.run_id, node_id + 1, dict(config), RecordDict(), {})
        return replies


def test_a_reply_that_was_lost_before_its_node_came_back_or_the_run_was_resumed_does_not_count(tmp_path):
    def states(name):
        return {"node_config": lambda _: {"states-path": str(tmp_path / name)}}

    whole = run(grid=Losing, **states("whole")).state
    assert equal(run(grid=Returning, **states("returned")).state, whole)
    folder = RunFolder(tmp_path / "broken")
    run(num_rounds=2, grid=Losing, callbacks=[Recorder(folder)], **states("broken"))
    assert equal(run(start={"resume": folder.load_checkpoint()}, **states("broken")).state, whole)


def test_bytes_of_the_control_variates_are_counted():
    scaffold, plain = run(num_rounds=1), run(num_rounds=1, stages=[])
    assert scaffold.log.bytes_down == 2 * plain.log.bytes_down
    assert scaffold.log.bytes_up == plain.log.bytes_up


@pytest.mark.parametrize(
    ("step", "cause"), [(0.0, f"{STEP} is 0.0"), (float("inf"), f"{STEP} is inf"), ("x", f"{STEP} is 'x'")]
)
def test_a_reply_with_a_wrong_length_of_its_steps_is_rejected(step, cause):
    class Tampered(Watched):
        def send_and_receive(self, messages, *, timeout=None):
            for number, reply in enumerate(super().send_and_receive(messages, timeout=timeout)):
                if number == 0 and not reply.has_error() and STEP in reply.content["config"]:
                    reply.content["config"][STEP] = step
                yield reply

    found = run(num_rounds=1, grid=Tampered)
    assert [cause in failure for failure in found.log.failures.values()] == [True]


def test_misuse_is_named():
    remedies = r"expected HeteroFL\(training=.*, or lr in the train_config of start"
    with pytest.raises(ConfigError, match=rf"Scaffold divides by the learning rate.*: {remedies}"):
        run(learning_rate=None)
    with pytest.raises(AggregationError, match=r"scaffold: .* add task.penalty\(model\) to the loss"):
        run(app=make_app(steps_of, with_penalty=False))


@pytest.mark.parametrize("stage", [Scaffold(), FedDyn()])
def test_a_client_keeps_the_level_of_its_first_reply(stage):
    def train(message, context):
        task = Task(message, context, build)
        model = task.model()
        task.penalty(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
        return task.reply(model, num_examples=1, capacity="c")

    found = run(app=make_tiny_app(train, build=build), stages=[stage], num_rounds=2, fraction_train=1.0)
    assert [found.records[0].rates, found.log.failures] == [found.records[1].rates, {}]

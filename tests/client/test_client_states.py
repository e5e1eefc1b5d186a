"""What clients keep for themselves in files: by round, as long as a checkpoint may need it, and over a resume."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr import HeteroFL, LocalGrid
from heterofl_flwr.client import Instruction, Task, answer_queries
from heterofl_flwr.client.state import load_tensors, save_tensors
from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.report import Recorder, RunFolder
from heterofl_flwr.stages.feddyn import FedDyn
from tests.federation.grouped import grouped
from tests.federation.tiny import NEVER, build, config, equal, inputs, make_app, node_context, play

SEVEN = 7


@pytest.fixture
def own(tmp_path, identity):
    """Return a node's folder, where messages can be made."""
    return tmp_path


def instruction(server_round, partition=3, every=1, kind="train", **values):
    oldest = ((server_round - 1) // every - 1) * every
    values = config(
        run_key=SEVEN,
        partition=partition,
        server_round=server_round,
        oldest_checkpoint=oldest,
        rate=1.0,
        seed=0,
        **values,
    )
    return Instruction.of(Message(RecordDict({"config": values}), 0, kind))


def keep(folder, number, every=1):
    state = {"weight": torch.full((2,), float(number))}
    save_tensors(node_context(states_path=str(folder)), instruction(number, every=every), state)


def read(folder, before, partition=3, kind="train"):
    state = load_tensors(node_context(states_path=str(folder)), instruction(before, partition, kind=kind))
    return None if state is None else state["weight"][0].item()


def test_a_round_begins_with_what_the_last_one_before_it_left(own):
    assert read(own, 5) is None
    for number in (2, 4, 7):
        keep(own, number)
    assert [read(own, number) for number in (8, 7, 5)] == [7, 4, 4]
    assert read(own, 9, partition=4) is None


@pytest.mark.parametrize("every", [1, 5])
def test_states_are_kept_as_long_as_a_checkpoint_may_need_them(own, every):
    trained = [1, 2, 3, 4, 6, 9, 10, 11, 12]
    for number in trained:
        keep(own, number, every)
        # After round `number` the run may go on from the last checkpoint, or from the one before.
        last = (number - 1) // every * every
        for checkpoint in {last, max(last - every, 0)}:
            before = [one for one in trained if one <= min(checkpoint, number)]
            found = read(own, checkpoint + 1)
            assert (found is None) == (not before)
            assert found is None or found == before[-1]
    assert len(list(own.rglob("*.safetensors"))) <= every + 2


def test_a_damaged_file_is_named(own):
    keep(own, 1)
    path = own / f"{SEVEN:016x}" / "00003" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(HeteroFLError, match=r"000001\.safetensors cannot be read .* begin anew"):
        read(own, 2)


def test_in_a_round_that_began_what_it_left_counts(own):
    for number in (2, 4):
        keep(own, number)
    kinds = ("train", "train.publish", "train.learn", "evaluate")
    assert [read(own, 4, kind=one) for one in kinds] == [2, 2, 4, 4]


def test_a_context_gives_no_state_of_a_later_round(identity):
    context = node_context()
    save_tensors(context, instruction(3), {"weight": torch.ones(2)})
    found = [load_tensors(context, instruction(number)) for number in (2, 3, 4)]
    assert [state is None for state in found] == [True, True, False]


@pytest.mark.parametrize("in_folder", [True, False])
def test_state_of_a_reply_that_did_not_count_is_ignored(own, identity, in_folder):
    context = node_context(**({"states_path": str(own)} if in_folder else {}))

    def state(server_round, counted_round):
        found = load_tensors(context, instruction(server_round, counted_round=counted_round))
        return None if found is None else found["weight"].item()

    for number, counted, expected in [(1, 0, None), (3, 0, None), (4, 3, 3), (6, 3, 3), (8, 6, 6)]:
        assert state(number, counted) == expected
        save_tensors(context, instruction(number, counted_round=counted), {"weight": torch.tensor(float(number))})
    assert len(list(own.rglob("*.safetensors")) if in_folder else context.state) == 2


def train(message, context, odd=lambda task, model: None):
    task = Task(message, context, build, seed_torch=True)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        sgd.zero_grad()
        (model(inputs(context.node_config["partition-id"])).square().mean() + task.penalty(model)).backward()
        sgd.step()
    odd(task, model)
    return task.reply(model, num_examples=1)


def run(folder, num_rounds, states, resume=None, **options):
    app = ClientApp()
    answer_queries(app, build)
    app.train()(train)
    strategy = HeteroFL(
        build, "a1-b1", fraction_train=0.7, evaluation=NEVER, callbacks=[Recorder(folder)], **grouped(options)
    )
    with LocalGrid(app, 4, node_config=lambda _: {"states-path": str(states)}) as grid:
        return strategy.start(grid, num_rounds=num_rounds, resume=resume).arrays.to_torch_state_dict()


with_state = pytest.mark.parametrize("options", [lambda: {"shared": ("hidden.*",)}, lambda: {"stages": [FedDyn(0.5)]}])


@with_state
def test_an_app_of_ones_own_goes_on_as_if_there_had_been_no_break(tmp_path, options):
    states, folder = tmp_path / "states", RunFolder(tmp_path / "broken")
    whole = run(tmp_path / "whole", 4, states, **options())
    run(folder, 2, states, **options())
    assert equal(run(folder, 4, states, folder.load_checkpoint(), **options()), whole)
    assert len(list(states.iterdir())) == 2  # one for each run


@with_state
@pytest.mark.parametrize("when", [1, 2])
def test_a_client_that_diverged_once_goes_on_from_its_earlier_state(options, when):
    def diverge(task, model):
        if (task.instruction.partition, task.instruction.server_round) == (1, when):
            torch.nn.init.constant_(model.classifier.weight, torch.nan)  # the hidden layer, which is sent, stays finite

    found = play(make_app(partial(train, odd=diverge)), num_rounds=3, **options())
    assert [list(record.failures) for record in found.records] == [[1] * (number == when) for number in (1, 2, 3)]


def test_a_reply_that_is_refused_here_leaves_no_state(own):
    context, shared = node_context(states_path=str(own)), {"hidden.weight", "hidden.bias"}
    values = config(rate=1.0, seed=0, server_round=1, partition=0, run_key=SEVEN, shared=["hidden.*"])
    arrays = ArrayRecord({name: tensor.data for name, tensor in build(1.0).named_parameters() if name in shared})
    task = Task(Message(RecordDict({"config": values, "arrays": arrays}), 0, "train"), context, build)
    model = task.model()
    for mistake in ({"num_examples": 1.5}, {"num_examples": 1, "metrics": {"loss": "low"}}):
        with pytest.raises(ConfigError, match="expected a"):
            task.reply(model, **mistake)
    assert not list(own.iterdir())
    task.reply(model, num_examples=1)
    assert len(list(own.rglob("*.safetensors"))) == 1

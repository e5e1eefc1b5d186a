"""FedH2L in our own app: three architectures that learn from one another on the bundled digits."""

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.node import NODE_STATES, Instruction
from heterofl_flwr.app.task import task_of
from heterofl_flwr.grids.apps import Identity
from heterofl_flwr.nn import build_model
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import DEFAULTS
from heterofl_flwr.strategies.instructions import instruction

CLIENTS = 5
HERE = "tests.app.test_fedh2l"
small_cnn = build_model("cnn", hidden=(16, 32))
small_resnet = build_model("preresnet18", channels=1, hidden=(8, 8, 16, 16))
H2L = {
    **DEFAULTS,
    "server.strategy": "fedh2l",
    "distill.models": f"{HERE}:small_cnn,{HERE}:small_resnet,mlp",
    "distill.seed-size": 200,
    "distill.seed-batch": 50,
    "distill.steps": 30,
    "train.mask-fill": "none",
    "fidelity.label-rows": "fixed",
    "train.epochs": 1,
    "mix": "a",
    "assignment": "fix",
    "data.split": "non-iid-2",
    "num-rounds": 4,
    "run.callbacks": "",
    "evaluate.every": 4,
}
STANDALONE = {**H2L, "server.strategy": "heterofl", "server.shared": "", "model.hidden": "16,32"}


def run(folder, **settings):
    config = {**settings, "run.dir": str(folder)}
    states = {NODE_STATES: str(folder / "clients")}
    with LocalGrid(
        "heterofl_flwr.app.client_app:app", CLIENTS, run_config=config, node_config=lambda partition: states
    ) as grid:
        server_app.run(grid, task_of(config))
    return RunFolder(folder)


def test_clients_have_architectures_in_turns():
    task = task_of(H2L)
    names = [type(task.build_of(partition)(1.0)).__name__ for partition in range(4)]
    assert names == ["CNN", "PreResNet", "MLP", "CNN"]
    assert task.build_of(0) is task.build_of(3)


@pytest.mark.parametrize(("strategy", "seeds"), [("fedh2l", 200), ("heterofl", 0)])
def test_a_model_is_judged_with_the_moments_of_the_seed_set_too(strategy, seeds):
    config = {**H2L, "server.strategy": strategy, "server.shared": ""}
    context = Context(1, 2, {"partition-id": 0, "num-partitions": CLIENTS}, RecordDict(), config)
    own = {"seed": 0, "server-round": 1, "partition": 0}
    lent = Identity(1)
    asked = instruction("evaluate", 2, ArrayRecord(), own)
    lent.release()
    assert sum(len(batch) for batch in Instruction(asked, context)._seed_batches()) == seeds


@pytest.mark.slow
def test_peers_teach_what_own_data_do_not_show(tmp_path):
    h2l, alone = run(tmp_path / "h2l", **H2L), run(tmp_path / "alone", **STANDALONE)
    with_peers, without = h2l.history()[-1], alone.history()[-1]
    assert with_peers.failures == without.failures == {}
    assert with_peers.evaluate["global-accuracy"] > without.evaluate["global-accuracy"] + 0.15
    assert with_peers.evaluate["local-accuracy"] > 0.6
    mlp = task_of(H2L).build_of(2)(1.0)
    fedavg = 2 * CLIENTS * 4 * sum(parameter.numel() for parameter in mlp.parameters())
    assert with_peers.bytes_up + with_peers.bytes_down < 0.01 * fedavg
    assert h2l.report.exists()


def test_a_resumed_run_equals_one_without_a_break(tmp_path):
    small = {**H2L, "distill.steps": 2, "evaluate.every": 1}
    whole = run(tmp_path / "whole", **small)
    run(tmp_path / "broken", **{**small, "num-rounds": 2})
    broken = run(tmp_path / "broken", **{**small, "run.resume": True})
    histories = [[{**one.to_json(), "seconds": 0.0} for one in folder.history()] for folder in (whole, broken)]
    assert histories[0] == histories[1]


def test_clients_have_the_levels_of_the_mix(tmp_path):
    small = {"distill.models": "cnn,mlp", "mix": "d1-e1", "distill.steps": 1, "num-rounds": 1, "evaluate.every": 1}
    (record,) = run(tmp_path, **{**H2L, **small}).history()
    assert record.failures == {}
    assert [record.rates[partition] for partition in range(CLIENTS)] == [0.125, 0.125, 0.0625, 0.0625, 0.0625]
    assert record.evaluate_by_level.keys() == {"d", "e"}


def test_seed_examples_are_the_same_for_all():
    one, other = task_of(H2L), task_of({**H2L, "seed": 1})
    assert len(one.seeds(CLIENTS)) == 200
    assert not torch.equal(one.seeds(CLIENTS).inputs, other.seeds(CLIENTS).inputs)


def test_where_clients_see_images_turned_seeds_and_the_whole_test_set_are_as_they_see_them():
    task, still = task_of({**H2L, "data.split": "rotated-90"}), task_of({**H2L, "data.split": "iid"})
    assert still.whole_test(CLIENTS) is still.test
    parts = task.partitions(CLIENTS)
    _, mine, _ = task.part(1, CLIENTS)
    order = torch.cat(parts.test).sort().indices
    places = (order.argsort())[len(parts.test[0]) :][: len(parts.test[1])]
    torch.testing.assert_close(task.whole_test(CLIENTS).inputs[places], mine.inputs)
    unturned = (task.seeds(CLIENTS).inputs == still.seeds(CLIENTS).inputs).flatten(1).all(1)
    assert 0.1 < unturned.float().mean() < 0.6  # those of clients 0 and 4

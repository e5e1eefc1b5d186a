"""What clients keep for themselves: in files or in their context, by round, and over a resume."""

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.node import NODE_STATES, OwnStates
from heterofl_flwr.app.task import task_of
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import DEFAULTS

CLIENTS = 5
SMALL = {
    **DEFAULTS,
    "model.hidden": "8,16",
    "train.epochs": 1,
    "run.callbacks": "",
    "mix": "a1-b1",
    "assignment": "fix",
    "data.split": "non-iid-2",
    "sample.fraction": 0.5,
}


def states(folder=None, partition=3):
    node = {} if folder is None else {NODE_STATES: str(folder)}
    return OwnStates(Context(1, 2, node, RecordDict(), {}), partition)


def value(number):
    return {"weight": torch.full((2,), float(number))}


def test_a_round_begins_with_what_the_last_one_before_it_left(tmp_path):
    own = states(tmp_path)
    assert own.before(5) is None
    for number in (2, 4, 7):
        own.keep(number, value(number), every=1)
    assert [own.before(number)["weight"][0].item() for number in (8, 7, 5)] == [7, 4, 4]
    assert states(tmp_path, partition=4).before(9) is None


@pytest.mark.parametrize("every", [1, 5])
def test_states_are_kept_as_long_as_a_checkpoint_may_need_them(tmp_path, every):
    own = states(tmp_path)
    trained = [1, 2, 3, 4, 6, 9, 10, 11, 12]
    for number in trained:
        own.keep(number, value(number), every)
        # After round `number` the run may go on from the last checkpoint, or from the one before.
        last = (number - 1) // every * every
        for checkpoint in {last, max(last - every, 0)}:
            before = [one for one in trained if one <= min(checkpoint, number)]
            found = own.before(checkpoint + 1)
            assert (found is None) == (not before)
            assert found is None or found["weight"][0] == before[-1]
    assert len(list(tmp_path.rglob("*.safetensors"))) <= 2 * every + 2


def test_without_a_folder_the_context_keeps_it():
    own = states()
    assert own.before(1) is None
    own.keep(1, value(1), every=1)
    assert own.before(2)["weight"].tolist() == [1, 1]


def test_a_damaged_file_is_named(tmp_path):
    own = states(tmp_path)
    own.keep(1, value(1), every=1)
    path = tmp_path / "00003" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(HeteroFLError, match=r"000001\.safetensors cannot be read .* begin anew"):
        own.before(2)


def run(folder=None, processes=0, **settings):
    config = {**SMALL, **settings}
    config |= {} if folder is None else {"run.dir": str(folder)}
    states = {} if folder is None else {NODE_STATES: str(folder / "clients")}
    options = {"processes": processes, "run_config": config, "node_config": lambda partition: states}
    with LocalGrid("heterofl_flwr.app.client_app:app", CLIENTS, **options) as grid:
        server_app.run(grid, task_of(config))
    return folder


def kept(folder):
    return {path.relative_to(folder): load_file(path) for path in (folder / "clients").rglob("*.safetensors")}


@pytest.mark.parametrize("shared", ["", "linear.*", "features.*"])
def test_a_resumed_run_equals_one_without_a_break(tmp_path, shared):
    whole = run(tmp_path / "whole", **{"num-rounds": 6, "server.shared": shared})
    broken = run(tmp_path / "broken", **{"num-rounds": 4, "server.shared": shared})
    # As if it had been killed after it had trained a round of which there is no checkpoint.
    for path in list((broken / "clients").glob("*/*.safetensors")):
        path.with_name("000005.safetensors").write_bytes(path.read_bytes())
    run(broken, processes=2, **{"num-rounds": 6, "server.shared": shared, "run.resume": True})
    histories = [
        [{**one.to_json(), "seconds": 0.0} for one in RunFolder(folder).history()] for folder in (whole, broken)
    ]
    assert histories[0] == histories[1]
    for path, own in kept(whole).items():
        assert {name: tensor.tolist() for name, tensor in own.items()} == {
            name: tensor.tolist() for name, tensor in kept(broken)[path].items()
        }


def test_standalone_is_good_at_home_and_bad_elsewhere(tmp_path):
    settings = {"server.shared": "", "sample.fraction": 1.0, "num-rounds": 6, "train.epochs": 3, "mix": "a"}
    last = RunFolder(run(tmp_path / "run", **settings)).history()[-1]
    assert last.failures == {}
    assert last.evaluate["local-accuracy"] > 0.9
    assert 0.1 < last.evaluate["global-accuracy"] < 0.5
    assert last.bytes_up == last.bytes_down == 0
    assert not (tmp_path / "run" / "models").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_without_a_run_folder_clients_keep_their_state_too():
    config = {**SMALL, "server.shared": "", "num-rounds": 3, "sample.fraction": 1.0}
    with LocalGrid("heterofl_flwr.app.client_app:app", CLIENTS, run_config=config) as grid:
        strategy = server_app.run(grid, task_of(config))
    assert strategy.log.failures == {}
    assert strategy.log.evaluate["local-accuracy"] > 0.5

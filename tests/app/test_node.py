"""What clients keep for themselves: in files or in their context, by round, and over a resume."""

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

from heterofl_flwr.app.node import NODE_STATES, keep_own_state, read_own_state, states_folder
from heterofl_flwr.errors import HeteroFLError
from tests.app.runs import history_of, run_app, run_kept
from tests.app.test_apps import SMALL
from tests.federation.tiny import equal

CLIENTS = 5
OWN = {**SMALL, "mix": "a1-b1", "assignment": "fix", "data.split": "non-iid-2", "sample.fraction": 0.5}


def folder_of(folder, partition=3):
    return states_folder(Context(1, 2, {NODE_STATES: str(folder)}, RecordDict(), {}), partition)


def keep(folder, number, every=1):
    keep_own_state(folder_of(folder), number, {"weight": torch.full((2,), float(number))}, every)


def read(folder, before, partition=3):
    found = read_own_state(folder_of(folder, partition), before)
    return None if found is None else found["weight"][0].item()


def test_a_round_begins_with_what_the_last_one_before_it_left(tmp_path):
    own = tmp_path
    assert read(own, 5) is None
    for number in (2, 4, 7):
        keep(own, number)
    assert [read(own, number) for number in (8, 7, 5)] == [7, 4, 4]
    assert read(own, 9, partition=4) is None


@pytest.mark.parametrize("every", [1, 5])
def test_states_are_kept_as_long_as_a_checkpoint_may_need_them(tmp_path, every):
    own = tmp_path
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
    assert len(list(tmp_path.rglob("*.safetensors"))) <= 2 * every + 2


def test_a_damaged_file_is_named(tmp_path):
    keep(tmp_path, 1)
    path = tmp_path / "00003" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(HeteroFLError, match=r"000001\.safetensors cannot be read .* begin anew"):
        read(tmp_path, 2)


def run(folder, **settings):
    return run_kept(folder, {**OWN, **settings}, CLIENTS)


@pytest.mark.parametrize(
    "kept", [{"server.shared": ""}, {"server.shared": "linear.*"}, {"server.stages": "feddyn(0.1)"}]
)
def test_a_resumed_run_equals_one_without_a_break(tmp_path, kept):
    whole = run(tmp_path / "whole", **{"num-rounds": 3, **kept})
    broken = run(tmp_path / "broken", **{"num-rounds": 2, **kept})
    # As if it had been killed after it had trained a round of which there is no checkpoint.
    for path in list((broken / "clients").rglob("*.safetensors")):
        path.with_name("000003.safetensors").write_bytes(path.read_bytes())
    run(broken, **{"num-rounds": 3, "run.resume": True, **kept})
    assert history_of(whole) == history_of(broken)
    (ours,), (theirs,) = (list((folder / "clients").iterdir()) for folder in (whole, broken))
    assert ours.name != theirs.name
    for path in ours.rglob("*.safetensors"):
        assert equal(load_file(path), load_file(theirs / path.relative_to(ours)))


def test_a_second_run_does_not_begin_with_the_firsts_states(tmp_path):
    """Nodes of a deployment name one folder for all runs."""
    histories = []
    for name, states in (("alone", "alone"), ("first", "nodes"), ("second", "nodes")):
        config = {**OWN, "num-rounds": 2, "server.shared": "", "run.dir": str(tmp_path / name)}
        config |= {"train.lr": 0.2} if name == "first" else {}
        kept = {NODE_STATES: str(tmp_path / f"states-{states}")}
        run_app(config, CLIENTS, node_config=lambda partition, kept=kept: kept)
        histories.append(history_of(tmp_path / name))
    assert histories[2] == histories[0]

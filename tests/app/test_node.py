"""What clients of our own app keep for themselves, over a resume and from run to run."""

import pytest
from safetensors.torch import load_file

from heterofl_flwr.client.state import NODE_STATES
from tests.app.runs import history_of, run_app, run_kept
from tests.app.test_apps import SMALL
from tests.app.test_fedh2l import H2L, HERE
from tests.federation.tiny import equal

CLIENTS = 5
OWN = {**SMALL, "mix": "a1-b1", "assignment": "fix", "data.split": "non-iid-2", "sample.fraction": 0.5}
PEERS = {**H2L, "distill.models": f"{HERE}:small_cnn,mlp", "distill.steps": 2, "evaluate.every": 1}


def run(folder, **settings):
    return run_kept(folder, {**OWN, **settings}, CLIENTS)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param({"server.shared": ""}, marks=pytest.mark.release),
        {"server.shared": "linear.*"},
        pytest.param({"server.stages": "feddyn(0.1)"}, marks=pytest.mark.release),
        pytest.param({"server.stages": "scaffold", "train.momentum": 0.0}, marks=pytest.mark.release),
        pytest.param(PEERS, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_one_without_a_break(tmp_path, kept):
    whole = run(tmp_path / "whole", **{**kept, "num-rounds": 3})
    broken = run(tmp_path / "broken", **{**kept, "num-rounds": 2})
    # As if it had been killed after it had trained a round of which there is no checkpoint.
    for path in list((broken / "clients").rglob("*.safetensors")):
        path.with_name("000003.safetensors").write_bytes(path.read_bytes())
    run(broken, **{**kept, "num-rounds": 3, "run.resume": True})
    assert history_of(whole) == history_of(broken)
    (ours,), (theirs,) = (list((folder / "clients").iterdir()) for folder in (whole, broken))
    assert ours.name != theirs.name
    for path in ours.rglob("*.safetensors"):
        assert equal(load_file(path), load_file(theirs / path.relative_to(ours)))


@pytest.mark.slow
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

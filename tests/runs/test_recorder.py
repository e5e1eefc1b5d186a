import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import Mix
from heterofl_flwr.federation.callbacks import RoundCallback, RunState
from heterofl_flwr.report import Costs, Recorder, RunFolder
from heterofl_flwr.runs import checkpoint as module
from heterofl_flwr.runs.checkpoint import load_checkpoint, save_checkpoint
from heterofl_flwr.runs.models import load_model, model_facts

SETTINGS = {"seed": 0}
LAST = 16


def files(folder: RunFolder, *names: str) -> dict[str, bytes]:
    """Return the content of all files below some names."""
    paths = [path for name in names for path in (folder.path / name).rglob("*")] + [folder.path / "history.jsonl"]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in paths}


@pytest.fixture
def whole(tmp_path, fake, costs):
    folder = RunFolder(tmp_path / "whole")
    folder.start(SETTINGS)
    fake.run([Recorder(folder, every=3, costs=costs)], 1, LAST)
    return folder


@pytest.mark.parametrize("dies_after", [3, 8])
def test_a_resumed_run_leaves_the_files_of_one_without_a_break(whole, folder, fake, costs, dies_after):
    folder.start(SETTINGS)
    fake.run([Recorder(folder, every=3, costs=costs)], 1, LAST, dies_after=dies_after)
    again = RunFolder(folder.path)
    again.start(SETTINGS, resume=True)
    checkpoint = again.load_checkpoint()
    assert checkpoint.server_round == dies_after // 3 * 3
    assert len(again.history()) == dies_after
    fake.run([Recorder(again, every=3, costs=costs)], checkpoint.server_round + 1, LAST)
    names = ("checkpoint", "models")
    assert files(again, *names) == files(whole, *names)


def test_a_run_that_stops_early_has_a_last_checkpoint(folder, fake):
    folder.start(SETTINGS)
    stop = RoundCallback()
    stop.on_round_end = lambda progress: progress.server_round == 7
    assert fake.run([Recorder(folder, every=5), stop], 1, LAST) == 7
    assert folder.load_checkpoint().server_round == 7
    assert folder.about()["finished"]


def test_checkpoints_by_time(folder, fake, monkeypatch):
    now = 0.0
    monkeypatch.setattr("heterofl_flwr.runs.recorder.monotonic", lambda: now)
    recorder = Recorder(folder, every="35s")
    recorder.on_start(1, 9, fake.state(0))
    saved, oldest = [], []
    for number in range(1, 10):
        now += 10
        recorder.on_round_end(fake.progress(number, 9))
        saved.append(folder.has_checkpoint and folder.load_checkpoint().server_round)
        oldest.append(recorder.oldest_checkpoint)
    assert saved == [False, False, False, 4, 4, 4, 4, 8, 8]
    assert oldest == [0, 0, 0, 0, 0, 0, 0, 4, 4]


@pytest.mark.parametrize("every", [0, True, 1.5, "10", "0s", "1m", None])
def test_other_intervals_are_errors(folder, every):
    with pytest.raises(ConfigError, match=r"every is .* rounds such as 10, or seconds such as '30s'"):
        Recorder(folder, every=every)


def test_models_of_a_round_that_is_not_evaluated_have_no_metrics_or_moments(folder, fake, costs, build):
    """Those of an earlier round were written, whose channels another order could have: 34 % in place of 95 %."""
    stop = RoundCallback()
    stop.on_round_end = lambda progress: progress.server_round == 7
    fake.run([Recorder(folder, costs=costs), stop], 1, LAST)
    facts = model_facts(folder)
    assert {(own["server_round"], *own["metrics"]) for own in facts.values()} == {(None,)}
    with pytest.raises(ConfigError, match=r"not measured: .* if this run was ended early, go on with it for a round"):
        load_model(folder, "a", build)
    fake.run([Recorder(folder, costs=costs)], 8, 8)
    assert {own["server_round"] for own in model_facts(folder).values()} == {8}


def test_costs_of_another_global_model_end_a_run_before_it_begins(folder, fake, build):
    """They ended it when all rounds were done, and left no models."""
    recorder = Recorder(folder, costs=Costs(build, Mix.parse("b1-c1"), torch.zeros(1, 1, 8, 8)))
    with pytest.raises(ConfigError, match=r"other shapes than those of build\(0\.5\), .*with_global_rate"):
        recorder.on_start(1, 2, fake.state(0))
    assert not folder.path.exists()


def test_a_resumed_run_keeps_the_costs_of_rates_outside_its_mix(folder, fake, build):
    """As of nodes with a smaller capacity, of which none need train again."""

    def resume():
        return Recorder(folder, costs=Costs(build, Mix.parse("a1-b1"), torch.zeros(1, 1, 8, 8)))

    recorder = resume()
    recorder.on_start(1, 1, fake.state(0))
    recorder.on_round_end(fake.progress(1, 1, rates={0: 1.0, 1: 0.25}))
    recorder.on_end(fake.state(1))
    resume().on_start(2, 2, fake.state(1))
    assert [cost.level for cost in folder.costs().levels] == ["a", "b", "c"]


def test_each_level_has_its_final_model_and_moments(whole, fake, build):
    info = json.loads((whole.path / "models" / "b.json").read_text())
    state = load_file(whole.path / "models" / "b.safetensors")
    assert (info["rate"], info["server_round"]) == (0.5, LAST)
    assert info["metrics"] == whole.history()[-1].evaluate_by_level["b"]
    small = build(0.5)
    assert {name: list(value.shape) for name, value in small.named_parameters()} == info["shapes"]
    small.load_state_dict(state)
    full = fake.state(LAST)
    assert all(torch.equal(value, full[name][tuple(map(slice, value.shape))]) for name, value in state.items())
    found = {path.name[0]: load_file(path) for path in (whole.path / "models").glob("*.moments.safetensors")}
    first = {level: own["fixed.bn.first"].tolist() for level, own in found.items()}
    assert first == {"a": [LAST, LAST], "b": [LAST + 100, LAST + 100]}


def test_a_run_goes_on_only_where_its_checkpoint_ends(folder, fake):
    fake.run([Recorder(folder)], 1, 4)
    with pytest.raises(ConfigError, match="holds rounds up to 4 already"):
        Recorder(folder).on_start(1, 4, fake.state(0))
    with pytest.raises(ConfigError, match="is of round 4, so the run goes on with the next one, not with round 3"):
        Recorder(folder).on_start(3, 8, fake.state(0))
    assert len(folder.history()) == 4


def test_models_of_an_earlier_end_are_dropped(whole, fake, build):
    fake.run([Recorder(whole)], LAST + 1, LAST)  # nothing left to do
    assert list(model_facts(whole)) == ["a", "b", "c", "d", "e"]
    fake.run([Recorder(whole)], LAST + 1, LAST + 2)
    with pytest.raises(ConfigError, match=r"has no model 'a'; expected one of none: .* Recorder\(folder, costs=...\)"):
        load_model(whole, "a", build)


def test_where_clients_keep_layers_there_is_no_model_to_write(folder, fake, costs):
    recorder = Recorder(folder, costs=costs)
    recorder.on_start(1, 1, fake.state(0))
    (_, *shared) = fake.state(1).items()
    recorder.on_round_end(fake.progress(1, 1))
    recorder.on_end(dict(shared))
    assert model_facts(folder) == {}
    assert folder.about()["finished"]


def make(number: int) -> RunState:
    state = {"layer.weight": torch.full((3, 2), float(number)), "scale": torch.tensor(number, dtype=torch.bfloat16)}
    return RunState(
        server_round=number,
        state=state,
        moments={"fixed.bn.count": torch.tensor(number)},
        stages={"layer.weight": torch.ones(3, 2).t()},
    )


def assert_same(found: RunState, expected: RunState) -> None:
    assert found.server_round == expected.server_round
    pairs = [(getattr(found, part), getattr(expected, part)) for part in ("state", "moments", "stages")]
    for one, two in pairs:
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


@pytest.fixture
def three(tmp_path):
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, make(number))
    return tmp_path


def test_everything_is_read_back_and_the_last_two_are_kept(three):
    assert_same(load_checkpoint(three), make(3))
    assert_same(load_checkpoint(three, last_round=2), make(2))
    assert sorted(path.name for path in three.iterdir()) == [
        f"round-00000{number}.{kind}" for number in (2, 3) for kind in ("json", "safetensors")
    ]


def test_a_state_alone_is_enough_and_its_tied_weights_are_copied(tmp_path):
    tied = torch.arange(4.0)
    save_checkpoint(tmp_path, RunState(server_round=1, state={"a": tied, "b": tied[:2]}))
    expected = RunState(server_round=1, state={"a": torch.arange(4.0), "b": torch.arange(2.0)})
    assert_same(load_checkpoint(tmp_path), expected)
    assert torch.equal(tied, torch.arange(4.0))


def test_states_of_callbacks_are_read_back_and_not_as_text(tmp_path):
    """A best of -inf came back as '-inf', and ended the resumed run at the first comparison."""
    states = {"KeepBest": {"best": -math.inf, "rounds": [1, 2], "name": None}}
    save_checkpoint(tmp_path, replace(make(1), callbacks=states))
    assert load_checkpoint(tmp_path).callbacks == states
    content = json.loads((tmp_path / "round-000001.json").read_text())["content"]
    assert content["callbacks"] == states


def test_no_whole_checkpoint_is_an_error(three):
    short, other = three.glob("*.safetensors")
    short.write_bytes(short.read_bytes()[:-7])
    other.write_bytes(other.read_bytes()[:-1] + b"!")  # a tensor's last byte: only the checksum tells
    with pytest.raises(ConfigError, match="holds no checkpoint to go on from; 2 damaged"):
        load_checkpoint(three)
    with pytest.raises(ConfigError, match="holds no checkpoint to go on from: put back"):
        load_checkpoint(three / "none")


def test_checkpoints_of_rounds_that_the_history_lacks_are_not_damaged(three):
    with pytest.raises(ConfigError, match="go on from; 2 damaged, or of rounds that the history lacks: put back"):
        load_checkpoint(three, last_round=1)


def test_a_newer_format_is_an_error_and_no_damage(three, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 3)
    save_checkpoint(three, make(4))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="has format 3, expected 2"):
        load_checkpoint(three)

import pytest
import torch

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import RunState
from heterofl_flwr.runs import checkpoint as module
from heterofl_flwr.runs.checkpoint import load_checkpoint, save_checkpoint


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


def test_no_whole_checkpoint_is_an_error(three):
    short, other = three.glob("*.safetensors")
    short.write_bytes(short.read_bytes()[:-7])
    other.write_bytes(other.read_bytes()[:-1] + b"!")  # a tensor's last byte: only the checksum tells
    with pytest.raises(ConfigError, match="holds no checkpoint to go on from; 2 damaged"):
        load_checkpoint(three)
    with pytest.raises(ConfigError, match="holds no checkpoint to go on from: start"):
        load_checkpoint(three / "none")


def test_a_newer_format_is_an_error_and_no_damage(three, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 3)
    save_checkpoint(three, make(4))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="has format 3, expected 2"):
        load_checkpoint(three)

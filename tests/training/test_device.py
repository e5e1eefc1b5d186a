import pytest
import torch

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.training import resolve_device


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says which devices torch finds."""

    def has(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "kind"), [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")]
)
def test_auto_takes_the_fastest(machine, cuda, mps, kind):
    machine(cuda, mps)
    assert resolve_device() == resolve_device("auto") == torch.device(kind)


def test_a_device_that_is_there_may_be_named(machine):
    machine(2, True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_missing_is_refused(machine, name):
    machine()
    with pytest.raises(ConfigError, match=f"device is '{name}', but torch .* finds none here: use auto or cpu"):
        resolve_device(name)


def test_a_number_beyond_the_devices_is_refused(machine):
    machine(2)
    with pytest.raises(ConfigError, match="device is 'cuda:2', but there are 2, counted from 0"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:0", "mps:1", "cuda:x", "cuda:-1", "auto:1"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="expected one of auto, cpu, cuda, mps, or cuda:<number>"):
        resolve_device(name)

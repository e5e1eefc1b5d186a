"""Devices, random states, and the C library's memory."""

import ctypes
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from heterofl_flwr import training
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.training import TrainingJob, resolve_device
from heterofl_flwr.training.device import arithmetic, give_back_gaps
from tests.training.conftest import OPTIONS, images, small


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says which devices torch finds."""

    def has(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


def test_auto_is_the_fastest_device_and_others_are_named(machine):
    for cuda, mps, kind in ((0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")):
        machine(cuda, mps)
        assert resolve_device() == resolve_device("auto") == torch.device(kind)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert resolve_device(name) == torch.device(name)


def test_the_number_of_queues_is_set_before_torch_looks_for_a_gpu():
    """CUDA then starts, and reads the variable."""
    code = (
        "import os, torch; torch.cuda.is_available = lambda: print(os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS'));"
        "from heterofl_flwr.training import resolve_device; resolve_device()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_MAX_CONNECTIONS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["32"]


@pytest.mark.parametrize(
    ("cuda", "names"), [(0, ("cuda", "cuda:0", "mps")), (2, ("cuda:2", "gpu", "", "cpu:0", "cuda:x", "cuda:-1"))]
)
def test_other_devices_raise_an_error(machine, cuda, names):
    machine(cuda)
    for name in names:
        with pytest.raises(
            ConfigError, match=rf"'{name}'(, but torch .* finds none|, but there are 2|; expected one of)"
        ):
            resolve_device(name)


@pytest.mark.parametrize(("precision", "expected"), [("float32", False), ("tf32", True), ("bf16", True)])
def test_switches_of_a_precision_are_restored_even_after_a_failure(precision, expected):
    def switches():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = switches()
    with suppress(KeyError), arithmetic(precision, torch.device("cpu")):
        assert switches() == (expected, expected)
        raise KeyError
    assert switches() == before
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("engine", ["plain", "cohort", "seats"])
def test_bfloat16_trains_on_a_cpu_and_float32_stays_exact(engine):
    def parameters(context):
        torch.manual_seed(0)
        models = [small()() for _ in range(2)]
        jobs = [TrainingJob(model=model, split=images(20, seed), seed=seed) for seed, model in enumerate(models)]
        with context:
            training.train_together(jobs, replace(OPTIONS, epochs=4), engine=engine)
        return [parameter.detach() for model in models for parameter in model.parameters()]

    device = torch.device("cpu")
    plain = parameters(nullcontext())
    for exact in ("float32", "tf32"):
        assert all(map(torch.equal, plain, parameters(arithmetic(exact, device))))
    half = parameters(arithmetic("bf16", device))
    assert {parameter.dtype for parameter in half} == {torch.float32}
    change = torch.cat([(new - old).flatten() for new, old in zip(half, plain, strict=True)])
    assert 0 < change.norm() < 0.05 * torch.cat([value.flatten() for value in plain]).norm()


def test_without_the_switch_nothing_is_changed(monkeypatch):
    refuses = Mock(mallopt=lambda *_: 0, malloc_trim=lambda _: 0)
    for library in ({"return_value": object()}, {"side_effect": OSError}, {"return_value": refuses}):
        monkeypatch.setattr(ctypes, "CDLL", Mock(**library))
        assert (training.keep_freed_memory(), training.give_back_freed_memory(), give_back_gaps()) == (
            False,
            False,
            False,
        )

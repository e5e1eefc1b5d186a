"""Simulated devices in our own app: the settings that name them, and what clients do of their work."""

import pytest

from heterofl_flwr import DeviceProfile
from heterofl_flwr.app.server_app import build_devices
from heterofl_flwr.app.task import Task
from heterofl_flwr.grids.devices import EDGE
from heterofl_flwr.settings.flat import from_flat
from tests.app.test_apps import SMALL, run

OWN = {"a": DeviceProfile(macs_per_second=1e9, download=1e6, upload=1e6)}


def own():
    return OWN


def task(**settings):
    return Task(from_flat({**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}))


def test_settings_name_bundled_devices_or_ones_own():
    assert build_devices(task(devices__profile="edge")).profile(0.25) is EDGE["c"]
    found = build_devices(task(devices__profile="tests.app.test_devices:own", devices__deadline=5))
    assert (found.profile(0.25), found.deadline) == (OWN["a"], 5)
    assert build_devices(task()) is None


def test_the_work_is_that_of_the_epochs_and_of_what_they_train():
    macs = build_devices(task(devices__profile="edge")).work("train", 0, 1.0, 1)
    assert build_devices(task(devices__profile="edge", train__epochs=4)).work("train", 0, 1.0, 7) == 28 * macs
    small = build_devices(task(devices__profile="edge")).work("train", 0, 0.0625, 1)
    inside = build_devices(task(devices__profile="edge", mix="a1-e1", train__distill="ordered"))
    assert inside.work("train", 0, 1.0, 1) == pytest.approx((macs + small) / 2)


def test_a_run_on_devices_tells_of_them():
    options = {"devices__profile": "edge", "devices__deadline": 0.001}
    (record,) = (one.record for one in run(num_rounds=1, **options))
    assert "simulated: later than the deadline of 0.001 s" in record.failures.values()
    assert record.simulated_seconds >= 0.001
    assert record.joules > 0


STEPS = {"asynchronous__size": 2, "asynchronous__concurrency": 3, "devices__profile": "edge"}


def test_rounds_that_do_not_wait_go_on_from_a_checkpoint(tmp_path):
    folder = str(tmp_path / "run")
    begun = run(num_rounds=2, run__dir=folder, **STEPS)
    rest = run(num_rounds=4, run__dir=folder, run__resume=True, **STEPS)
    assert [one.server_round for one in rest] == [3, 4]
    out = begun[-1].stages["Asynchronous/training"].tolist()
    assert begun[-1].stages["Asynchronous/version"] == 2
    assert 0 < len(out) <= 3
    assert all(one.record.simulated_seconds > 0 for one in begun)
    assert all("staleness" in one.record.train for one in (*begun, *rest))


def test_spare_clients_are_those_whose_devices_are_last():
    (one,) = run(num_rounds=1, sample__fraction=0.5, sample__spare=0.5, devices__profile="tests.app.test_devices:own")
    assert one.record.simulated_seconds > 0
    assert not one.record.failures

"""What the settings make of a workload: models of unequal depth, and simulated devices."""

import math

import pytest
import torch

from heterofl_flwr import DeviceProfile
from heterofl_flwr.app.server_app import build_devices
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.data.known import Facts
from heterofl_flwr.grids.device_costs import EDGE
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.settings.validate import from_flat
from tests.app.test_apps import SMALL, run

DEEP = {"data.name": "digits", "model.hidden": "4,4,6,6", "mix": "a1-b1-c1"}


def workload(**settings):
    return load_workload({**DEEP, **{key.replace("__", "."): value for key, value in settings.items()}})


def test_a_level_may_be_narrower_and_shallower():
    build = workload(model__shrink="b=0.5:1,c=0.5:0.25").build
    full, narrow, both = (build(rate) for rate in (1.0, 0.5, 0.25))
    assert [len(model.exits) for model in (full, narrow, both)] == [4, 4, 1]
    assert [model.exits[0].body.conv.out_channels for model in (full, narrow, both)] == [4, 2, 2]
    assert {layer.rate for layer in both.modules() if isinstance(layer, Scaler)} == {0.5}


def test_the_scaler_divides_by_the_width_of_the_global_model():
    build = workload(mix="b1-c1", model__shrink="b=0.5:1,c=0.25:0.5").build
    assert {layer.rate for layer in build(0.5).modules() if isinstance(layer, Scaler)} == {1.0}
    assert {layer.rate for layer in build(0.25).modules() if isinstance(layer, Scaler)} == {0.5}
    shallow = workload(mix="b1-c1", model__shrink="depth").build(0.5)
    assert {layer.rate for layer in shallow.modules() if isinstance(layer, Scaler)} == {1.0}


def test_settings_say_which_exits_are_trained_and_evaluated():
    last = workload(model__shrink="depth", model__ensemble=True)
    model = last.build(1.0).eval()
    assert {name.split(".")[1] for name in model.untrained} == {"0", "1", "2"}
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(model(images), torch.stack(model.all_logits(images)).mean(0))
    assert last.joint_loss(1) is None
    assert workload(model__shrink="depth", train__distill="ordered").build(1.0).untrained == ()
    mutual = workload(
        model__shrink="depth", train__exits="mutual", distill__ramp=0.5, distill__weight=2.0, **{"num-rounds": 4}
    )
    assert mutual.build(1.0).untrained == ()
    weights = [mutual.joint_loss(server_round).keywords["weight"] for server_round in (1, 2, 3)]
    assert weights == pytest.approx([2 * math.exp(-5), 2 * math.exp(-5 / 4), 2])


def test_inner_widths_are_those_below_a_clients_own():
    own = workload(train__distill="all")
    nested = own.with_inner_widths(own.build(0.5), 0.5, own.build)
    assert len(nested.all_logits(torch.zeros(2, 1, 8, 8))) == 2


def test_a_transformer_has_fewer_layers_and_one_head():
    own = Workload(from_flat({"data.name": "wikitext2", "model.shrink": "depth"}))
    own.__dict__["facts"] = Facts((64,), 20)  # so that no data are read
    assert [len(own.build(rate).encoder) for rate in (1.0, 0.5, 0.25)] == [4, 2, 1]


def test_a_level_without_widths_and_depths_is_named():
    own = workload(model__shrink="b=0.5:0.5", mix="0.6x1-0.3x2")
    with pytest.raises(ConfigError, match=r"level 0\.6 is not in levels \(b\): add its width and depth"):
        own.build(0.6)


OWN = {"a": DeviceProfile(macs_per_second=1e9, download=1e6, upload=1e6)}


def own():
    return OWN


def on_devices(**settings):
    return Workload(from_flat({**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}))


def test_settings_name_bundled_devices_or_ones_own():
    assert build_devices(on_devices(devices__profile="edge")).profile(0.25) is EDGE["c"]
    found = build_devices(on_devices(devices__profile="tests.app.test_task:own", devices__deadline=5))
    assert (found.profile(0.25), found.deadline) == (OWN["a"], 5)
    assert build_devices(on_devices()) is None


def test_the_work_is_that_of_the_epochs_and_of_what_they_train():
    macs = build_devices(on_devices(devices__profile="edge")).work("train", 0, 1.0, 1)
    assert build_devices(on_devices(devices__profile="edge", train__epochs=4)).work("train", 0, 1.0, 7) == 28 * macs
    small = build_devices(on_devices(devices__profile="edge")).work("train", 0, 0.0625, 1)
    inside = build_devices(on_devices(devices__profile="edge", mix="a1-e1", train__distill="ordered"))
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
    assert 0 < len(out) <= 3
    assert all(one.record.simulated_seconds > 0 for one in begun)
    assert all("staleness" in one.record.train for one in (*begun, *rest))


def test_spare_clients_are_those_whose_devices_are_last():
    (one,) = run(num_rounds=1, sample__fraction=0.5, sample__spare=0.5, devices__profile="tests.app.test_task:own")
    assert one.record.simulated_seconds > 0
    assert not one.record.failures

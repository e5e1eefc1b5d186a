"""How many clients run at once with what each gets of the machine."""

import pytest

from heterofl_flwr.app.launch.request import Share, gpu_share
from heterofl_flwr.errors import ConfigError


@pytest.mark.parametrize(
    ("share", "cores", "devices", "clients"),
    [
        (Share(cpus=3), 8, 0, 2),
        (Share(cpus=16), 8, 0, 1),
        (Share(at_once=3), 8, 0, 3),
        (Share(gpus=0.25), 2, 4, 2),
        (Share(gpus=0.3), 16, 2, 6),
        (Share(gpus=2.0), 16, 4, 2),
    ],
)
def test_how_many_clients_run_at_once(share, cores, devices, clients):
    assert share.clients(cores, devices) == clients


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_share_lets_at_least_so_many_clients_run(devices):
    for clients in range(1, 40):
        share = Share(gpus=gpu_share(devices, clients))
        assert clients <= share.clients(1000, devices) < clients + devices


def test_fewer_is_half_until_there_is_one():
    share = Share(gpus=0.1)
    seen = [share.clients(16, 1)]
    while seen[-1] > 1:
        share = share.fewer(seen[-1], 1)
        seen.append(share.clients(16, 1))
    assert seen == [10, 5, 2, 1]
    assert share.gpus == 1.0
    with pytest.raises(ConfigError, match="one client alone"):
        share.fewer(1, 1)
    assert Share().fewer(8, 0) == Share(at_once=4)

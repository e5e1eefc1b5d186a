"""How grids join a cluster that is named."""

import logging
import socket
import time
from types import SimpleNamespace

import pytest

from heterofl_flwr.errors import ConfigError, HeteroFLError

ray_session = pytest.importorskip("heterofl_flwr.grids.ray_session", exc_type=ImportError)


@pytest.fixture
def place(monkeypatch):
    """Name an address of this machine as the cluster's, at which nobody listens yet."""
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{place.getsockname()[1]}")
        yield place


def test_an_address_at_which_nobody_listens_raises_soon(place):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"no Ray answers at RAY_ADDRESS='127\.0\.0\.1:.*refused"):
        ray_session._connect({})
    assert time.monotonic() - began < ray_session.SECONDS_TO_CONNECT


@pytest.mark.parametrize(("mode", "warned"), [(None, True), ("disabled", True), ("token", False)])
def test_a_cluster_without_a_token_is_warned_of(place, monkeypatch, caplog, mode, warned):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray_session, "_init", lambda: None)
    place.listen()
    with caplog.at_level(logging.WARNING):
        ray_session._connect({})
    assert ("asks for no token" in caplog.text) == warned


def test_a_process_of_rays_own_that_has_ended_is_named(monkeypatch):
    process = SimpleNamespace(process=SimpleNamespace(poll=lambda: -9))
    node = SimpleNamespace(all_processes={"gcs_server": [], "raylet": [process]})
    monkeypatch.setattr(ray_session.ray._private.worker, "_global_node", node)
    with pytest.raises(HeteroFLError, match=r"its process raylet has ended \(exit code -9\)"):
        ray_session.check_alive()

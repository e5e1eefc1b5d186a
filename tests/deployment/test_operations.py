"""What the page says about operation, followed: a certificate is renewed, a node withdrawn, the database restored."""

import json
import shutil
import socket
import ssl
import subprocess

import pytest

from tests.deployment.howto import NGINX
from tests.deployment.lab import LONGEST
from tests.deployment.test_deployment import NAMES, Follower
from tests.processes import kill

pytestmark = [pytest.mark.deployment, pytest.mark.release, pytest.mark.skipif(NGINX is None, reason="needs nginx")]


def listed(follower, *statuses):
    """Return the numbers of the nodes that are not withdrawn, in the order of their registration."""
    words = ["flwr", "supernode", "list", "lab", "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True, env=follower.environment, check=True)
    nodes = sorted(json.loads(done.stdout)["nodes"], key=lambda node: node["created-at"])
    return [node["node-id"] for node in nodes if node["status"] in (statuses or ("online", "offline"))]


def certificate(follower):
    """Return the certificate at the open port."""
    host, _, port = follower.page.open_address.partition(":")
    context = ssl.create_default_context(cafile=follower.folder / "keys" / "ca.crt")
    with (
        socket.create_connection((host, int(port)), 30) as plain,
        context.wrap_socket(plain, server_hostname=host) as own,
    ):
        return own.getpeercert()["serialNumber"]


@pytest.fixture
def follower(tmp_path):
    with Follower(tmp_path) as follower:
        yield follower
        started(follower, "nginx").terminate()  # its title replaces its environment, and the mark in it


def started(follower, program):
    """Return the process of a program that the page had started."""
    (process,) = [own for own in follower._started if f"exec {program} " in str(own.args)]
    return process


def test_certificates_nodes_and_backups(follower, tmp_path):
    page = follower.page
    # With a process of its own for connections, as on a server: alone, nginx drops some when it reloads.
    page.commands = [command.replace(" master_process off;", "") for command in page.commands]
    superlink_command = next(command for command in page.commands if command.startswith("flower-superlink"))
    nodes = follower.prepare()
    follower.wait_for(lambda: len(listed(follower, "online")) == len(NAMES), "both nodes", LONGEST)
    page.commands = page.operations
    before = certificate(follower)
    follower.do("heterofl keys")
    follower.do("nginx")
    follower.wait_for(lambda: certificate(follower) != before, "the new certificate")
    follower.do("python")
    follower.do("flwr supernode list")
    phone, camera = listed(follower)
    page.commands = [command.replace("1234567890", camera) for command in page.commands]
    follower.do("flwr supernode unregister")
    assert page.commands == []
    follower.wait_for(lambda: listed(follower) == [phone], "the withdrawal", LONGEST)
    follower.wait_for(lambda: nodes["camera"].poll() is not None, "the end of the SuperNode", LONGEST)
    kill(started(follower, "flower-superlink"))
    for path in tmp_path.glob("superlink.db-*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "superlink.db")
    restored = follower.start(superlink_command, "restored")
    follower.wait_for_superlink(restored, page.port, tmp_path / "keys" / "ca.crt")
    assert listed(follower) == [phone, camera]
    # The camera has ended, so it does not stay online.
    follower.wait_for(lambda: listed(follower, "online") == [phone], "the phone's return", LONGEST)
    assert nodes["phone"].poll() is None

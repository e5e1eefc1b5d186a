"""The shipped nginx before a server with TLS, on loopback: who sends half of a request keeps nobody out."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.deployment.howto import NGINX
from tests.docs.pages import DOCS
from tests.processes import free_port

pytestmark = [pytest.mark.release, pytest.mark.skipif(NGINX is None, reason="needs nginx")]

CONFIG = DOCS / "deployment" / "nginx.conf"
HALF = b"POST /v1/fleet/push HTTP/1.1\r\nHost: x\r\n"
PART, ANNOUNCED = 4 * 2**20, 60 * 2**20
GONE_AFTER = 20.0  # twice the time that the file gives


class SuperLink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self):
        type(self).asked += 1
        rest = int(self.headers["Content-Length"])
        while rest and (part := self.rfile.read1(min(rest, 2**16))):
            rest -= len(part)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def proxy(tmp_path):
    """Return a function that connects to nginx, which stands before a server."""
    SuperLink.asked = 0
    command = [sys.executable, "-m", "heterofl_flwr", "keys", tmp_path / "keys", "--host", "localhost"]
    subprocess.run(command, check=True, capture_output=True)
    keys, port = tmp_path / "keys", free_port()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.crt", keys / "server.key")
    text = CONFIG.read_text(encoding="utf-8")
    trusting = ssl.create_default_context(cafile=keys / "ca.crt")
    with ThreadingHTTPServer(("127.0.0.1", 0), SuperLink) as server, ExitStack() as stack:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        text = text.replace("superlink:8000", f"127.0.0.1:{server.server_port}")
        text = text.replace("listen 8443", f"listen 127.0.0.1:{port}").replace("/tmp/nginx", f"{tmp_path}/nginx")
        (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
        options = "daemon off; master_process off;"
        nginx = stack.enter_context(subprocess.Popen([NGINX, "-c", tmp_path / "nginx.conf", "-g", options]))
        stack.callback(nginx.kill)

        def connect():
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30.0))
            return stack.enter_context(trusting.wrap_socket(plain, server_hostname="localhost"))

        until = time.monotonic() + 30.0
        while time.monotonic() < until:
            try:
                connect()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield connect


def answer(connection, sent):
    """Return the status of the answer to a request; 0 if the connection ends without one."""
    connection.sendall(sent)
    line = connection.recv(4096).partition(b"\r\n")[0].split()
    return int(line[1]) if line else 0


def test_half_sent_requests_keep_nobody_out_and_are_let_go(proxy):
    halves = [proxy() for _ in range(510)]
    for half in halves[10:]:
        half.sendall(HALF)
    for half in halves[:10]:
        half.sendall(HALF + b"Content-Length: 2\r\n\r\nh")
    begun = time.monotonic()
    assert answer(proxy(), HALF + b"Content-Length: 2\r\n\r\nhi") == 200
    assert time.monotonic() - begun < GONE_AFTER / 4  # it waited for none of them
    for half in halves:
        half.settimeout(max(0.1, begun + GONE_AFTER - time.monotonic()))
        assert b" 200 " not in half.recv(4096)


def test_bodies_go_to_the_superlink_and_never_to_the_disk(proxy, tmp_path):
    senders = [proxy() for _ in range(5)]
    for sender in senders:
        sender.sendall(HALF + f"Content-Length: {ANNOUNCED}\r\n\r\n".encode() + bytes(PART))
    until = time.monotonic() + 10.0
    while SuperLink.asked < len(senders) and time.monotonic() < until:
        time.sleep(0.1)
    assert SuperLink.asked == len(senders)
    assert not [path for path in (tmp_path / "nginx-body").rglob("*") if path.is_file()]


def test_an_address_has_a_bounded_number_of_requests_under_way(proxy):
    half = HALF + b"Content-Length: 2\r\n\r\nh"
    connections = [proxy() for _ in range(70)]
    for connection in connections[:64]:
        connection.sendall(half)
    time.sleep(1.0)
    assert [answer(connection, half) for connection in connections[64:]] == [503] * 6
    assert answer(connections[0], b"i") == 200

"""A TCP proxy on 127.0.0.1 that delays, slows down, drops and cuts the connections of one node."""

import random
import socket
import threading
import time
from contextlib import suppress

CHUNK = 16_384


class Proxy:
    """Passes connections on to a port of this machine; a context manager that ends them all.

    Parameters
    ----------
    target : int
        The port behind the proxy.
    delay : float
        Seconds before each chunk is passed on.
    rate : float
        Bytes in a second, of each connection and direction.

    Attributes
    ----------
    loss
        Probability that a connection ends at a chunk.
    deaf
        Whether nothing is passed on to the node.
    """

    loss, deaf = 0.0, False

    def __init__(self, target: int, *, delay: float = 0.0, rate: float = float("inf")) -> None:
        self._target, self._delay, self._rate = target, delay, rate
        self._lock, self._random = threading.Lock(), random.Random(0)
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept, self._listener)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        with self._lock:
            ended, self._open = {self._listener, *self._open}, set()
            self._listener = None
        for end in ended:
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def heal(self) -> None:
        """Accept connections again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept, self._listener)

    def _start(self, function, *arguments: object) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._listener is not listener:
                    near.close()
                    far.close()
                    return
                self._open |= {near, far}
            self._start(self._pass, near, far, False)
            self._start(self._pass, far, near, True)

    def _pass(self, source: socket.socket, target: socket.socket, to_node: bool) -> None:
        with suppress(OSError):
            while (chunk := source.recv(CHUNK)) and self._random.random() >= self.loss:
                time.sleep(self._delay + len(chunk) / self._rate)
                while to_node and self.deaf:
                    time.sleep(0.1)
                target.sendall(chunk)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._open -= {source, target}

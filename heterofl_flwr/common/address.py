"""Addresses on which this package listens."""

from heterofl_flwr.common.errors import ConfigError


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of ``host:port``."""
    host, _, port = str(address).rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(f"the metrics address is {address!r}; expected host:port, such as 127.0.0.1:9090")
    return host, int(port)

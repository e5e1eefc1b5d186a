"""Write the certificates and keys of a deployment into a folder.

With --host, the command writes the files of the SuperLink:

  ca.crt      the authority's certificate: copy it to every node, and to everyone who runs 'flwr'
  ca.key      the authority's key: keep it secret, and do not copy it to any node
  server.crt  the SuperLink's certificate, valid for the names in --host, localhost, 127.0.0.1 and ::1
  server.key  the SuperLink's key

If the folder has an authority, only server.crt and server.key are made anew. Nodes then need no new file.

With --node NAME, the command writes two keys. Put the private key NAME on the node, and register the public key
NAME.pub with the SuperLink.
"""

import argparse
import shlex

from heterofl_flwr.app.argument_types import read_count, read_path
from heterofl_flwr.common.errors import ConfigError

SUMMARY = "make certificates and keys for a deployment with TLS and known nodes"
EXAMPLES = """
examples:
  heterofl keys keys --host superlink.example.org --host 10.0.0.5 --node phone --node camera
  heterofl keys keys --host superlink.example.org --days 90     renews the SuperLink's certificate
"""
DAYS = 365
"""Default validity of the SuperLink's certificate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``heterofl keys``."""
    parser.add_argument("folder", type=read_path, help="where to")
    host = "name or address by which the SuperLink is reached; repeatable"
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help=host)
    days = f"how long its certificate is valid ({DAYS})"
    parser.add_argument("--days", type=read_count, help=days)
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="a node's name; repeatable")


def run(args: argparse.Namespace) -> int:
    """Write the certificates and keys, and print the commands that register the nodes."""
    # Imported here, as cryptography takes a while to load.
    from heterofl_flwr.app.certificates import new_paths, write_certificates, write_node_key

    if not args.host and not args.node:
        raise ConfigError("nothing to write: name the SuperLink (--host NAME), nodes (--node NAME), or both")
    if args.days and not args.host:
        raise ConfigError("--days is for the SuperLink's certificate, and keys of nodes have no end: add --host NAME")
    for name in args.node:
        new_paths(args.folder, name)  # raises an error before the SuperLink's key is replaced
    written = write_certificates(args.folder, args.host, args.days or DAYS) if args.host else []
    pairs = [write_node_key(args.folder, name) for name in dict.fromkeys(args.node)]
    print(*written, *(path for pair in pairs for path in pair), sep="\n")
    if pairs:
        print("register with the SuperLink, by its connection in Flower's config.toml:")
    for _, public in pairs:
        print(f"  flwr supernode register {shlex.quote(str(public))} CONNECTION --name {public.stem}")
    return 0

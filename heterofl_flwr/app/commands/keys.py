"""``heterofl keys``: what a deployment needs for TLS and to know its nodes."""

import argparse
from pathlib import Path

from heterofl_flwr.errors import ConfigError

EXPLAIN = """
Write the certificates and keys of a deployment into a folder. With --host, those of the SuperLink:

  ca.crt      the authority; every node and everyone who runs 'flwr' gets a copy, and trusts it
  ca.key      its key; whoever has it can pretend to be the SuperLink, so keep it off the machines
  server.crt  the SuperLink's certificate, for the names given and for localhost, 127.0.0.1 and ::1
  server.key  its key

If the authority is there already, only the SuperLink's certificate and key are made anew; nodes need nothing new. With
--node, the key of each node, which goes to the node, and NAME.pub, which is registered with the SuperLink.
"""
EXAMPLES = """
examples:
  heterofl keys keys --host superlink.example.org --host 10.0.0.5 --node phone --node camera
  heterofl keys keys --host superlink.example.org --days 90     renews the SuperLink's certificate
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command."""
    this = subparsers.add_parser(
        "keys",
        help="make certificates and keys for a deployment with TLS and known nodes",
        description=EXPLAIN,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    this.add_argument("folder", type=Path, help="where to")
    this.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address by which the SuperLink is reached; repeatable",
    )
    this.add_argument("--days", type=int, default=365, help="how long its certificate is valid (%(default)s)")
    this.add_argument("--node", action="append", default=[], metavar="NAME", help="a node's name; repeatable")
    this.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files, and say how nodes are registered."""
    from heterofl_flwr.app.credentials import write_certificates, write_node_key

    if not args.host and not args.node:
        raise ConfigError("nothing to write: name the SuperLink (--host NAME), nodes (--node NAME), or both")
    if args.days < 1:
        raise ConfigError(f"--days is {args.days}; expected an integer of 1 or more")
    written = write_certificates(args.folder, args.host, args.days) if args.host else []
    public = []
    for name in args.node:
        written += (pair := write_node_key(args.folder, name))
        public.append(pair[1])
    print("\n".join(map(str, written)))
    if public:
        print("register with the SuperLink, by its connection in Flower's config.toml:")
    for path in public:
        print(f"  flwr supernode register {path} CONNECTION --name {path.stem}")
    return 0

"""Start 'flower-supernode' with the remaining arguments, in a process that ends when the SuperNode ends.

In Flower 1.41 and 1.42, a SuperNode that loses its connection can stop working while its process stays alive. With this
command the process ends too, with exit code 1, so that a service manager restarts it.
"""

import argparse
import os
import sys
from importlib.metadata import entry_points

SUMMARY = "start Flower's SuperNode, in a process that ends when it does"
EXAMPLES = """
examples:
  heterofl supernode --insecure --superlink 127.0.0.1:8000 --node-config 'level="c" partition-id=0 num-partitions=2'
  heterofl supernode --help                                     Flower's own help
"""
SCRIPT = "flower-supernode"


def run(args: argparse.Namespace) -> int:
    """Start the SuperNode; when it returns, end the process with exit code 1."""
    sys.argv = [SCRIPT, *args.arguments]
    (script,) = entry_points(group="console_scripts", name=SCRIPT)
    script.load()()
    print("heterofl supernode: the SuperNode has ended, as the lines above say: start it again", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)  # remaining threads would keep the process alive

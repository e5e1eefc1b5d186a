"""Start 'flower-supernode' with all arguments that follow, in a process that ends when the SuperNode does.

In Flower 1.41, a connection to the SuperLink that drops at the wrong moment ends the work of a SuperNode, but not its
process, which then takes no part in anything. Here the process ends too, with 1, so that a service manager starts it
again.
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
    """Start the SuperNode. It raises ``SystemExit`` where it ends on purpose, and returns where an error ended it."""
    sys.argv = [SCRIPT, *args.arguments]
    (script,) = entry_points(group="console_scripts", name=SCRIPT)
    script.load()()
    print("heterofl supernode: the SuperNode has ended, as the lines above say: start it again", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)  # threads that are left would keep the process

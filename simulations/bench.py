"""Measure speed and memory, always against a reference that runs in the same command.

Usage: ``python -m simulations.bench aggregate`` or ``messages``. The last line is the verdict, and so is the exit
status: 0 if every goal was met, 1 if not. Machines are noisy: close other programs, and look at ratios, never at times
alone.
"""

import argparse
import sys

from simulations.benchmarks import aggregate, messages
from simulations.benchmarks.machine import describe_machine

BENCHMARKS = {"aggregate": aggregate, "messages": messages}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    options = parser.parse_args(arguments)
    print(describe_machine())
    return 0 if BENCHMARKS[options.benchmark].run(options) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Measure speed and memory, if possible against a reference that runs in the same command.

The final line is the verdict. The exit code is 0 if all goals were met, 1 if not, 2 if nothing could be measured.
Machines are noisy: close other programs, and compare ratios, not times.
"""

import argparse

from simulations.bench import aggregate, gpu, pfl, round, scale, step
from simulations.bench.measure import describe_machine, print_verdict
from simulations.program import formatter, parser_of, start

BENCHMARKS = {module.__name__.rpartition(".")[2]: module for module in (aggregate, step, gpu, round, pfl, scale)}


def run(options: argparse.Namespace) -> int:
    print(describe_machine(), flush=True)
    return 0 if print_verdict(BENCHMARKS[options.benchmark].run(options)) else 1


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of("simulations.bench", __doc__)
    commands = parser.add_subparsers(title="benchmarks", dest="benchmark", metavar="NAME", required=True)
    for name, module in BENCHMARKS.items():
        text = module.__doc__ or ""
        own = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=formatter)
        module.add_arguments(own)
    return start(parser, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())

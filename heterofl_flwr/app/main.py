"""The command ``heterofl``. Subcommands load torch only when they run."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from types import MappingProxyType, ModuleType

from heterofl_flwr import __version__
from heterofl_flwr.app import export, keys, profile, report, run, settings, supernode, sweep
from heterofl_flwr.common.errors import HeteroFLError, printable
from heterofl_flwr.common.fast_exit import exit_fast
from heterofl_flwr.common.user_code import allow_modules, named_modules

COMMANDS: Mapping[str, ModuleType] = MappingProxyType(
    {
        "run": run,
        "sweep": sweep,
        "report": report,
        "export": export,
        "settings": settings,
        "profile": profile,
        "keys": keys,
        "supernode": supernode,
    }
)
"""Module of each subcommand, with ``SUMMARY``, ``EXAMPLES`` and ``run``; its docstring is the description in the help.

A module without ``add_arguments`` parses its arguments itself, also ``--help``.
"""

FAILED = 1
"""Exit code of a command that began its work and failed."""
MISUSED = 2
"""Exit code of a command with invalid arguments, settings or files."""
INTERRUPTED = 130
"""Exit code after an interrupt (Ctrl-C)."""


def status_of(program: str, work: Callable[[], int | None]) -> int:
    """Call ``work`` and return an exit code; print errors with the prefix ``program``.

    Without an error, the code is the result of ``work`` (0 for None). After a broken pipe it is ``FAILED``, and no
    error is printed. After any other ``OSError`` or a ``HeteroFLError`` it is ``MISUSED``, after Ctrl-C
    ``INTERRUPTED``. Other exceptions are not caught.
    """
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
    try:
        try:
            return work() or 0
        finally:
            if sys.stdout:  # None if it is closed
                sys.stdout.flush()  # raises BrokenPipeError here if the reader, such as head, has closed the pipe
    except HeteroFLError as error:
        print(printable(f"{program}: {error}"), file=sys.stderr)  # an error may contain names from untrusted files
        return MISUSED
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{program}: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.filename is None and sys.stdout:  # maybe an error of stdout, which Python would flush again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return FAILED
        print(f"{program}: {error}", file=sys.stderr)
        return MISUSED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``heterofl`` with ``arguments``, by default those of the process; return its exit code."""
    if arguments is None:
        exit_fast()
    words = sys.argv[1:] if arguments is None else arguments

    def work() -> int:
        args = parse(words)
        allow_modules(named_modules(words))
        code: int = args.run(args)
        return code

    return status_of("heterofl", work)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; ``train.lr=0.05`` stands for ``--set train.lr=0.05``.

    The arguments of ``sweep`` and ``supernode`` are parsed later, by Hydra and Flower.
    """
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command and not hasattr(command, "add_arguments"):  # the rest, also --help, is Hydra's or Flower's
        return argparse.Namespace(run=command.run, arguments=arguments[1:])
    top = parser()
    args, words = top.parse_known_args(arguments)
    if wrong := [word for word in words if word.startswith("-") or "=" not in word or "set" not in args]:
        hint = "; a setting is one word with its value, such as train.lr=0.05" if "set" in args else ""
        top.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    if words:  # argparse does not say whether a word came before or after an option
        by_option, by_word = (dict(text.partition("=")[::2] for text in texts) for texts in (args.set, words))
        if both := [key for key, value in by_word.items() if by_option.get(key, value) != value]:
            top.error(f"{', '.join(both)}: set by a word and by an option; expected one of the two")
        args.set = [*args.set, *words]
    return args


def parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="heterofl",
        description="Train one global model over clients of unequal size: HeteroFL on Flower.",
        epilog="'heterofl COMMAND --help' says more on each.",
    )
    top.add_argument("--version", action="version", version=f"heterofl-flwr {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    style = argparse.RawDescriptionHelpFormatter
    for name, command in COMMANDS.items():
        texts = {"help": command.SUMMARY, "description": command.__doc__, "epilog": command.EXAMPLES}
        subparser = subparsers.add_parser(name, **texts, formatter_class=style)
        subparser.set_defaults(run=command.run)
        if hasattr(command, "add_arguments"):  # sweep and supernode have none: see parse
            command.add_arguments(subparser)
    return top

"""The arguments of the command ``heterofl``, and how the programs of this project end.

A subcommand's module, and with it torch, is loaded only when the subcommand runs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from heterofl_flwr import __version__
from heterofl_flwr.common.errors import HeteroFLError, not_usable, printable, unknown_settings
from heterofl_flwr.settings.stored_settings import stored_settings

FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def status_of(program: str, work: Callable[[], int | None]) -> int:
    """Do the work; return its exit status: 0 if it has none, 2 for what cannot be asked.

    The program's name begins each error message. The work includes reading the arguments, as their parser prints and
    ends the process too. An interrupt may say how to go on.
    """
    try:
        try:
            return work() or 0
        finally:
            if sys.stdout:  # None where it is closed
                sys.stdout.flush()  # here a reader that has had enough, such as head, is noticed
    except HeteroFLError as error:
        print(printable(f"{program}: {error}"), file=sys.stderr)  # names in it may be a stranger's
        return MISUSED
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{program}: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.filename is None and sys.stdout:  # may be of the output, which Python would flush once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return FAILED
        print(f"{program}: {error}", file=sys.stderr)
        return MISUSED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 only if it did what was asked, 2 for what cannot be asked."""

    def work() -> int:
        args = parse(arguments)
        _import_from_here()
        code: int = import_module(f"heterofl_flwr.app.{args.module}").run(args)
        return code

    return status_of("heterofl", work)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read arguments; where settings can be given, words such as ``train.lr=0.05`` are some, as in Hydra."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["sweep"]:  # the others are Hydra's, and --help too
        return argparse.Namespace(module="sweep.command", arguments=arguments[1:])
    top = parser()
    args, words = top.parse_known_args(arguments)
    if wrong := [word for word in words if word.startswith("-") or "=" not in word or "set" not in args]:
        hint = "; a setting is one word, such as train.lr=0.05" if "set" in args else ""
        top.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    if words:
        args.set = [*args.set, *words]
    if getattr(args, "set", None) and not getattr(args, "app", None):  # the settings of another app are its own
        _check_settings(args.set)
    return args


def _check_settings(words: Sequence[str]) -> None:
    """Refuse settings and values that cannot be now, and not when torch is loaded, which takes seconds."""
    known = {setting.key: setting for setting in stored_settings()}
    parts = (word.partition("=") for word in words)
    given = {key.strip(): text for key, equals, text in parts if key.strip() and equals}
    wrong = [known[key].fault(text) for key, text in given.items() if key in known]
    if faults := unknown_settings(given, known) + list(filter(None, wrong)):
        raise not_usable(faults)


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
    for name, (add_arguments, summary, text, examples) in COMMANDS.items():
        this = subparsers.add_parser(name, help=summary, description=text, epilog=examples, formatter_class=style)
        this.set_defaults(module=f"cli.{name}")
        if add_arguments:
            add_arguments(this)
    return top


def _path(text: str) -> Path:
    """Read a path that may begin with ``~``, which shells leave as it is in ``--out=~/runs``."""
    return Path(os.path.expanduser(text))


def _import_from_here() -> None:
    """Let functions that are named as ``module:function`` lie in the folder from which the command was called."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, as it may be a stranger's folder with a module such as json.py


HOW = MappingProxyType({"grid": None, "gpus": None, "cpus": 1, "parallel": None})
"""What the options of how to run are by default."""

RUN = """
Train one global model over virtual clients of unequal size, through Flower. All settings have keys:
'heterofl settings' lists them. The exit code is 0 only if the run did all that it was to do.
"""
RUN_EXAMPLES = """
examples:
  heterofl run                                          20 clients on scikit-learn's digits
  heterofl run --data cifar10 --mix a-e data.split=non-iid-2 train.lr=0.05
  heterofl run --rounds 20 --out runs/mine              and then: heterofl run --resume runs/mine --rounds 40
  heterofl run --app path/to/flower/app --clients 10    any other Flower app, with a true exit code
  RAY_ADDRESS=host:6379 heterofl run --clients 1000     on a Ray cluster
"""


def _add_run(this: argparse.ArgumentParser) -> None:
    what = this.add_argument_group("what")
    given: dict[str, Any] = {"dest": "set", "action": "append", "default": []}
    for option, long in (
        ("--data", "data.name=NAME"),
        ("--mix", "mix=MIX, such as a1-b1-c1-d1-e1 or a1-e9"),
        ("--rounds", "num-rounds=N"),
        ("--seed", "seed=N"),
    ):
        key, metavar = long.partition(",")[0].split("=")
        what.add_argument(option, type=f"{key}={{}}".format, metavar=metavar, help=f"short for --set {long}", **given)
    what.add_argument("--set", metavar="KEY=VALUE", help="any setting; --set may be left out", **given)
    what.add_argument(
        "--config", type=_path, metavar="FILE", help="settings in a TOML file; the options above override it"
    )
    what.add_argument(
        "--clients", type=_count, metavar="N", help="virtual clients; by default 20 for digits, else 100; 2 with --app"
    )
    folder = what.add_mutually_exclusive_group()
    folder.add_argument("--out", type=_path, metavar="DIR", help="the run's folder; by default runs/<data>-<time>")
    folder.add_argument("--resume", type=_path, metavar="DIR", help="go on with the run in this folder")
    what.add_argument("--app", type=_path, metavar="DIR", help="another Flower app, in place of this package's own")
    this.set_defaults(**HOW)
    how = this.add_argument_group("how")
    where = "local: this process; ray: processes of Ray, by default with RAY_ADDRESS, --gpus, --cpus or --parallel"
    how.add_argument("--grid", choices=("local", "ray"), help=where)
    how.add_argument(
        "--gpus", type=float, metavar="SHARE", help="of a GPU for each client, on Ray; by default one; 0: none"
    )
    how.add_argument("--cpus", type=_count, metavar="N", help="cores for each client, on Ray; by default 1")
    how.add_argument("--parallel", type=_count, metavar="N", help="at most this many clients at once, on Ray")
    how.add_argument("--log", action="store_true", help="show Flower's log instead of a line for each round")


SWEEP = """
Run the jobs of a sweep with Hydra: each combination of the values given, or the rows of an experiment, such as a table
of the paper. All arguments are Hydra's: group=option, key=value, key=value,value. 'heterofl sweep --help' lists groups
and all values, 'heterofl settings' says what each setting means. The same command again skips finished jobs and resumes
those that were cut off. At the end a table has the mean over seeds, the least and the most of each row.
"""
SWEEP_EXAMPLES = """
examples:
  heterofl sweep -m mix=a1-e1,a1-e4 seed=0,1                   four jobs on scikit-learn's digits
  heterofl sweep -m experiment=table7 seed=0,1,2 dry=true      only list the jobs, with the time that they take
  heterofl sweep -m data=mnist method=fedavg,heterofl hydra/launcher=joblib
"""


REPORT = "Make a run's report.html and figures anew from its folder, and print its tables."


def _add_report(this: argparse.ArgumentParser) -> None:
    this.add_argument("folder", type=_path, metavar="RUN", help="the run's folder")


EXPORT = """
Write the models of a run into RUN/exports, a folder each, so that they run without this package:

  model.safetensors  the tensors, for the model's own code; batch norm has the statistics that were measured
  model.pt2          a program of torch.export: runs wherever torch does
  model.onnx         the same for onnxruntime and its like, without torch; needs heterofl-flwr[export]

Every file is opened again and compared with the model on examples of the test data, before it gets its name. A table of
all models (rate, parameters, score, sizes) is printed, and written as README.md, with how to prepare inputs.
"""
EXPORT_EXAMPLES = """
examples:
  heterofl export runs/mine
  heterofl export runs/mine --level c --formats onnx
  heterofl export runs/mine --level b --level e --out models
"""


def _add_export(this: argparse.ArgumentParser) -> None:
    this.add_argument("folder", type=_path, metavar="RUN", help="the run's folder")
    level = "such as c; repeatable; by default all"
    this.add_argument("--level", action="append", default=[], metavar="LEVEL", help=level)
    formats = "some of safetensors, pt2 and onnx, with commas; may be repeated; by default all three"
    this.add_argument("--formats", action="append", metavar="NAMES", help=formats)
    this.add_argument("--out", type=_path, metavar="DIR", help="where to; by default RUN/exports")


SETTINGS = """
Every setting of a run, its value and what it means. Set them with 'heterofl run --set key=value', or with
'flwr run . --run-config "key=value"'. Values that follow from the data set are shown with the word they stand for.
"""
SETTINGS_EXAMPLES = """
examples:
  heterofl settings
  heterofl settings --set data.name=cifar10 --set data.split=non-iid-2
  heterofl settings --format toml
"""


def _add_settings(this: argparse.ArgumentParser) -> None:
    this.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting; repeatable")
    formats = "toml: the defaults, or with --set all values, as in pyproject.toml"
    this.add_argument("--format", choices=("text", "toml"), default="text", help=formats)


PROFILED = (
    *("mnist", "cifar10", "wikitext2", "digits"),
    *("cnn", "mlp", "lenet", "preresnet18", "preresnet18-later", "preresnet50", "transformer"),
)

PROFILE = """
The mean cost per client of each mix, next to which the paper prints accuracies (Tables 7 to 9), of a model of this
package or of your own:

  ratio       parameters, relative to the global model of the mix
  parameters  number of parameters
  MACs        multiplications (with addition) of one forward pass, counted
  MB          parameters in float32, in units of 1024 * 1024 bytes

Each --mix is followed by its levels, such as 'a1-b9: b'. Without --mix these are the 31 mixes of equal shares of the
levels a to e. CSV has all digits.
"""
PROFILE_EXAMPLES = """
examples:
  heterofl profile mnist
  heterofl profile cifar10 --mix a-e --mix a1-b9 --format markdown
  heterofl profile preresnet50 --shape 3x224x224 --classes 1000 --mix 1.0x1-0.3x9
  heterofl profile net:build --shape 3x32x32 --mix a-e            build(rate) of net.py in this folder
"""


def _add_profile(this: argparse.ArgumentParser) -> None:
    names = f"a data set or a model, {', '.join(PROFILED)}, or 'module:function' from a rate to a model of yours"
    this.add_argument("name", type=_profiled, help=names)
    this.add_argument("--mix", action="append", metavar="MIX", help="such as a-e, a1-b9 or 1.0x1-0.3x9; repeatable")
    this.add_argument("--shape", type=_integers("x", "3x32x32"), help="shape of one input, such as 3x32x32")
    this.add_argument("--tokens", action="store_true", help="inputs of your model are numbers of tokens, as --shape 64")
    this.add_argument("--classes", type=_count, help="number of classes")
    widths = "64,128,256,512"
    this.add_argument(
        "--hidden", type=_integers(",", widths), metavar="WIDTHS", help=f"widths at rate 1, such as {widths}"
    )
    this.add_argument("--norm", choices=("sbn", "in", "gn", "ln", "none"), help="norm of an image model")
    this.add_argument("--format", choices=("table", "csv", "markdown"), default="table")


def _profiled(text: str) -> str:
    """Read the name of what is profiled; whether a function of the user's can be loaded is seen later."""
    if text not in PROFILED and ":" not in text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 'module:function' or one of {', '.join(PROFILED)}")
    return text


def _count(text: str) -> int:
    """Read an integer of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer of 1 or more")
    return int(text)


def _integers(separator: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """Return a reader of positive integers, with an error that shows an example."""

    def read(text: str) -> tuple[int, ...]:
        parts = text.split(separator)
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected positive integers such as {example}")
        return tuple(map(int, parts))

    return read


KEYS = """
Write the certificates and keys of a deployment into a folder. With --host, those of the SuperLink:

  ca.crt      the authority; every node and everyone who runs 'flwr' gets a copy, and trusts it
  ca.key      its key; whoever has it can pretend to be the SuperLink, so keep it off the machines
  server.crt  the SuperLink's certificate, for the names given and for localhost, 127.0.0.1 and ::1
  server.key  its key

If the authority is there already, only the SuperLink's certificate and key are made anew; nodes need nothing new. With
--node, the key of each node, which goes to the node, and NAME.pub, which is registered with the SuperLink.
"""
KEYS_EXAMPLES = """
examples:
  heterofl keys keys --host superlink.example.org --host 10.0.0.5 --node phone --node camera
  heterofl keys keys --host superlink.example.org --days 90     renews the SuperLink's certificate
"""


def _add_keys(this: argparse.ArgumentParser) -> None:
    this.add_argument("folder", type=_path, help="where to")
    host = "name or address by which the SuperLink is reached; repeatable"
    this.add_argument("--host", action="append", default=[], metavar="NAME", help=host)
    this.add_argument("--days", type=int, default=365, help="how long its certificate is valid (%(default)s)")
    this.add_argument("--node", action="append", default=[], metavar="NAME", help="a node's name; repeatable")


COMMANDS: Mapping[str, tuple[Callable[[argparse.ArgumentParser], None] | None, str, str, str]] = {
    "run": (_add_run, "train, and leave a folder with everything about it", RUN, RUN_EXAMPLES),
    "sweep": (None, "run a sweep: several mixes, seeds, a table of the paper", SWEEP, SWEEP_EXAMPLES),
    "report": (_add_report, "make the report of a run, and print its tables", REPORT, ""),
    "export": (_add_export, "write a run's models as safetensors, torch.export and ONNX", EXPORT, EXPORT_EXAMPLES),
    "settings": (_add_settings, "every setting, its value and what it means", SETTINGS, SETTINGS_EXAMPLES),
    "profile": (
        _add_profile,
        "what the models of a mix cost, as in the paper's Tables 7 to 9",
        PROFILE,
        PROFILE_EXAMPLES,
    ),
    "keys": (_add_keys, "make certificates and keys for a deployment with TLS and known nodes", KEYS, KEYS_EXAMPLES),
}
"""Of each subcommand: what adds its arguments, and what its help says."""

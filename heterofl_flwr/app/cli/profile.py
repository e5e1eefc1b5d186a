"""``heterofl profile``: what the models of a mix cost, as the left columns of the paper's Tables 7 to 9."""

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from heterofl_flwr.app.cli import Subparsers, add_command
from heterofl_flwr.errors import ConfigError

if TYPE_CHECKING:
    from heterofl_flwr.nn.models import Setup
    from heterofl_flwr.nn.profile import MixProfile

HEADER = ("mix", "ratio", "parameters", "FLOPs (paper)", "MACs", "MB")
EXPLAIN = """
The mean cost per client of each mix, next to which the paper prints accuracies (Tables 7 to 9):

  ratio          parameters, relative to the global model of the mix
  parameters     number of parameters
  FLOPs (paper)  what the paper prints as FLOPs: operations times the number of named parameters of each layer
  MACs           multiplications (with addition) of one forward pass, counted
  MB             parameters in float32, in units of 1024 * 1024 bytes

Without --mix these are the 31 mixes of equal shares of the levels a to e. CSV has all digits.
"""
EXAMPLES = """
examples:
  heterofl profile mnist
  heterofl profile cifar10 --mix a-e --mix a1-b9 --format markdown
  heterofl profile preresnet50 --shape 3x224x224 --classes 1000 --mix 1.0x1-0.3x9
"""


def add(subparsers: Subparsers) -> None:
    """Add this command."""
    summary = "what the models of a mix cost, as in the paper's Tables 7 to 9"
    this = add_command(subparsers, "profile", run, summary, EXPLAIN, EXAMPLES)
    this.add_argument("name", help="a data set (mnist, cifar10, wikitext2, digits), or a model")
    this.add_argument("--mix", action="append", metavar="MIX", help="such as a-e, a1-b9 or 1.0x1-0.3x9; repeatable")
    this.add_argument("--shape", type=_integers("x", "3x32x32"), help="shape of one input, such as 3x32x32")
    this.add_argument("--classes", type=_integers(None, "10"), help="number of classes")
    this.add_argument(
        "--hidden",
        type=_integers(",", "64,128,256,512"),
        metavar="WIDTHS",
        help="widths at rate 1, such as 64,128,256,512",
    )
    this.add_argument("--norm", help="norm of an image model: sbn, in, gn, ln or none")
    this.add_argument("--format", choices=("table", "csv", "markdown"), default="table")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from heterofl_flwr.core.formatting import render

    classes = args.classes and args.classes[0]
    setup = build_setup(args.name, args.shape, {"classes": classes, "hidden": args.hidden, "norm": args.norm})
    rows = []
    for name, cost in mix_costs(setup, args.mix or all_mixes("abcde")).items():
        if args.format == "csv":
            numbers = (cost.ratio, cost.parameters, cost.printed_flops, cost.macs, cost.megabytes)
            cells = [format(number, ".12g") for number in numbers]
        else:
            large = map(printed, (cost.parameters, cost.printed_flops, cost.macs))
            cells = [f"{cost.ratio:.2f}", *large, f"{cost.megabytes:.2f}"]
        rows.append((name, *cells))
    print(render(HEADER, rows, args.format))
    return 0


def all_mixes(levels: str) -> list[str]:
    """Return all mixes of equal shares of these levels, in the order of the paper's tables."""
    subsets = (subset for size in range(1, len(levels) + 1) for subset in combinations(levels, size))
    return ["-".join(subset) for subset in sorted(subsets, key=lambda subset: (subset[0], len(subset), subset))]


def build_setup(name: str, shape: tuple[int, ...] | None, options: dict[str, object]) -> "Setup":
    """Return the paper's set-up of a data set, or one for a model, with what the user changed."""
    from heterofl_flwr.nn.models import MODELS, PAPER, Setup
    from heterofl_flwr.settings import from_flat

    if name in PAPER:
        base = PAPER[name]
    elif name == "digits":
        model = from_flat({"data.name": name}).model
        base = Setup(model.name, (1, 8, 8), options={"channels": 1, "classes": 10, "hidden": model.hidden})
    elif name in MODELS:
        base = next((setup for setup in PAPER.values() if setup.model == name), None) or Setup(name, (3, 32, 32))
    else:
        raise ConfigError(
            f"{name!r} is neither a data set ({', '.join(PAPER)}, digits) nor a model ({', '.join(MODELS)})"
        )
    shape = shape or base.shape
    if len(shape) != len(base.shape):
        raise ConfigError(
            f"--shape {'x'.join(map(str, shape))}: {base.model} takes inputs like {'x'.join(map(str, base.shape))}"
        )
    given = {option: value for option, value in options.items() if value is not None}
    images = {"channels": shape[0]} if len(shape) > 1 else {}
    return Setup(base.model, shape, base.dtype, {**base.options, **images, **given})


def mix_costs(setup: "Setup", names: Sequence[str]) -> dict[str, "MixProfile"]:
    """Return the mean cost of each mix. Every model is built once, without memory for its values."""
    import torch

    from heterofl_flwr.core.levels import Mix
    from heterofl_flwr.nn.profile import mean_profile, profile

    mixes: dict[str, Mix] = {name: Mix.parse(name) for name in names}
    build, profiles = setup.build(), {}
    for rate in sorted({rate for mix in mixes.values() for rate in mix.rates}, reverse=True):
        with torch.device("meta"):
            model = build(rate)
        profiles[rate] = profile(model, setup.example())
    return {name: mean_profile(profiles, mix) for name, mix in mixes.items()}


def printed(value: float) -> str:
    """Return a number as the paper prints it: one decimal of thousands, millions or billions."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if value >= unit), (1, ""))
    return f"{value / unit:.1f} {name}".strip()


def _integers(separator: str | None, example: str) -> Callable[[str], tuple[int, ...]]:
    """Return a reader of positive integers, with an error that shows an example."""

    def read(text: str) -> tuple[int, ...]:
        parts = [text] if separator is None else text.split(separator)
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected positive integers such as {example}")
        return tuple(map(int, parts))

    return read

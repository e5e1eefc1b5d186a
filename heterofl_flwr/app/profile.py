"""Print the mean cost per client of each mix, as in Tables 7 to 9 of the paper.

The columns are:

  ratio       parameters, relative to the global model of the mix
  parameters  number of parameters
  MACs        multiply-accumulate operations of one forward pass
  MB          parameters in float32, in units of 1024 * 1024 bytes

A --mix with several levels also has a row for each level, such as 'a1-b9: b', and a line with its price below the
table. The price is the costs of one federation of the mix, divided by the total costs of separate federations, one for
each level. In the federation of a level, all clients that can hold the level's model take part. Without --mix, the
table has 31 mixes: equal shares of each set of levels from a to e. Prices are printed only in the formats table and
markdown. In the format csv, numbers have up to 12 significant digits.
"""

import argparse
import sys
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from heterofl_flwr.app.argument_types import TABLE_FORMATS, read_count, read_integers
from heterofl_flwr.common.errors import ConfigError, first_line
from heterofl_flwr.common.user_code import load_function

if TYPE_CHECKING:
    from torch import Tensor

    from heterofl_flwr.core.mix import Mix
    from heterofl_flwr.nn.inner_widths import InnerWidths
    from heterofl_flwr.nn.models import Build, Setup
    from heterofl_flwr.nn.profile import MixProfile, Profile

SUMMARY = "what the models of a mix cost, as in the paper's Tables 7 to 9"
EXAMPLES = """
examples:
  heterofl profile mnist
  heterofl profile cifar10 --mix a-e --mix a1-b9 --format markdown
  heterofl profile preresnet50 --shape 3x224x224 --classes 1000 --mix 1.0x1-0.3x9
  heterofl profile net:build --shape 3x32x32 --mix a-e            build(rate) of net.py in this folder
"""

PROFILED = (
    *("mnist", "cifar10", "wikitext2", "digits"),
    *("cnn", "mlp", "lenet", "preresnet18", "preresnet18-later", "preresnet50", "transformer"),
)
"""Names of data sets and models that the command accepts."""

OPTIONS = ("classes", "hidden", "norm")
"""Options that apply only to this package's models."""

INNER: "tuple[InnerWidths, ...]" = ("drawn", "sandwich", "all")
"""Values of ``train.distill`` with which a step trains both a client's model and smaller levels inside this model."""

HEADER = ("mix", "ratio", "parameters", "MACs", "MB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``heterofl profile``."""
    names = f"a data set or a model, {', '.join(PROFILED)}, or 'module:function' from a rate to a model of yours"
    parser.add_argument("name", type=_read_name, help=names)
    parser.add_argument("--mix", action="append", metavar="MIX", help="such as a-e, a1-b9 or 1.0x1-0.3x9; repeatable")
    parser.add_argument("--shape", type=read_integers("x", "3x32x32"), help="shape of one input, such as 3x32x32")
    parser.add_argument(
        "--tokens", action="store_true", help="inputs of your model are numbers of tokens, as --shape 64"
    )
    parser.add_argument("--classes", type=read_count, help="number of classes")
    widths = "64,128,256,512"
    parser.add_argument(
        "--hidden", type=read_integers(",", widths), metavar="WIDTHS", help=f"widths at rate 1, such as {widths}"
    )
    parser.add_argument("--norm", choices=("sbn", "in", "gn", "ln", "none"), help="norm of an image model")
    parser.add_argument("--format", choices=TABLE_FORMATS, default="table")


def _read_name(text: str) -> str:
    if text not in PROFILED and ":" not in text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 'module:function' or one of {', '.join(PROFILED)}")
    return text


def run(args: argparse.Namespace) -> int:
    """Print the table of costs, and the prices of mixes."""
    # Imported here, as they load torch, which takes seconds.
    from heterofl_flwr.core.formatting import render
    from heterofl_flwr.core.levels import level_name
    from heterofl_flwr.core.mix import Mix
    from heterofl_flwr.nn.build import equal_levels
    from heterofl_flwr.nn.profile import mean_profile

    is_users = ":" in args.name
    for option in OPTIONS if is_users else ("tokens",):
        if getattr(args, option):
            raise ConfigError(f"--{option} is not for {args.name}: leave it out")
    if is_users:
        build, example = load_users_model(args.name, args.shape, tokens=args.tokens)
    else:
        options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
        setup = build_setup(args.name, args.shape, options)
        build, example = setup.build(), setup.example()
    mixes = {name: Mix.parse(name) for name in args.mix or all_mixes("abcde")}
    rates = {rate for mix in mixes.values() for rate in mix.rates}
    # The meta device needs no memory, but a user's model may need values.
    profiles = profile_rates(args.name, build, example, rates, "cpu" if is_users else "meta")
    for warning in equal_levels(profiles):
        print(warning, file=sys.stderr)
    rows = []
    for name, mix in mixes.items():
        rows.append(row(name, mean_profile(profiles, mix), args.format))
        for rate in mix.rates if args.mix and len(mix.rates) > 1 else ():
            cost = mean_profile(profiles, Mix((rate,), (1,), mix.global_rate))
            rows.append(row(f"{name}: {level_name(rate)}", cost, args.format))
    print(render(HEADER, rows, args.format))
    costs = {rate: (cost.parameters, cost.macs) for rate, cost in profiles.items()}
    for name, mix in mixes.items() if args.mix and args.format in ("table", "markdown") else ():
        if len(mix.rates) > 1:
            print(f"\n{price_line(name, mix, costs)}")
    return 0


def price_line(name: str, mix: "Mix", costs: Mapping[float, tuple[float, float]]) -> str:
    """Return text on the price of a mix: its costs, divided by the total costs of one federation for each level.

    ``costs`` maps each rate to the numbers of parameters and of multiplications of the rate's model.
    """
    from heterofl_flwr.runs.costs import price

    rates = [rate for rate in mix.parts if rate]
    plain, *nested = (price(mix, rates, costs, widths) for widths in ("none", *INNER))
    shares = ", ".join(f"{name} {cost.macs_share:.2f}" for name, cost in zip(INNER, nested, strict=True))
    return (
        f"{name} costs {plain.client_rounds:.2f} of the client-rounds, {plain.bytes_share:.2f} of the bytes and "
        f"{plain.macs_share:.2f} of the multiplications of one federation for each level"
        f"\n(multiplications with train.distill: {shares})"
    )


def row(name: str, cost: "MixProfile", style: str) -> tuple[str, ...]:
    """Return the table row of a mix. For csv, numbers have up to 12 significant digits; other styles shorten them."""
    from heterofl_flwr.core.formatting import count

    if style == "csv":
        return name, *(format(number, ".12g") for number in (cost.ratio, cost.parameters, cost.macs, cost.megabytes))
    return name, f"{cost.ratio:.2f}", count(cost.parameters), count(cost.macs), f"{cost.megabytes:.2f}"


def all_mixes(levels: str) -> list[str]:
    """Return a mix with equal shares, such as ``a-c``, for each subset of ``levels``, in the paper's order."""
    subsets = (subset for size in range(1, len(levels) + 1) for subset in combinations(levels, size))
    return ["-".join(subset) for subset in sorted(subsets, key=lambda subset: (subset[0], len(subset), subset))]


def build_setup(name: str, shape: tuple[int, ...] | None, options: dict[str, object]) -> "Setup":
    """Return the ``Setup`` of a data set or a model; ``shape`` and ``options`` override its values.

    ``name`` is a key of ``PAPER``, ``digits``, or the name of a model. A model gets the first setup in ``PAPER`` with
    this model. If there is none, the model gets a setup with inputs of shape (3, 32, 32).
    """
    from heterofl_flwr.nn.models import PAPER, Setup
    from heterofl_flwr.settings.auto_values import options_of
    from heterofl_flwr.settings.validate import from_flat

    if name in PAPER:
        base = PAPER[name]
    elif name == "digits":
        model = from_flat({"data.name": name}).model
        base = Setup(model.name, (1, 8, 8), options={"channels": 1, "classes": 10, "hidden": model.hidden})
    else:
        base = next((setup for setup in PAPER.values() if setup.model == name), None) or Setup(name, (3, 32, 32))
    shape = shape or base.shape
    if len(shape) != len(base.shape):
        sizes, expected = ("x".join(map(str, lengths)) for lengths in (shape, base.shape))
        raise ConfigError(f"--shape {sizes}: {base.model} takes inputs like {expected}")
    images = {"channels": shape[0], "inputs": shape} if len(shape) > 1 else {}
    return Setup(base.model, shape, base.dtype, {**base.options, **options_of(base.model, images), **options})


def load_users_model(name: str, shape: tuple[int, ...] | None, *, tokens: bool) -> "tuple[Build, Tensor]":
    """Return a user's build function and an example input of zeros."""
    import torch

    from heterofl_flwr.nn.build import called_with_rate, check_build

    build = load_function(name, "the model")
    check_build(build)
    if shape is None:
        raise ConfigError(f"{name} needs the shape of one input: add --shape, such as --shape 3x32x32")
    return called_with_rate(build), torch.zeros(1, *shape, dtype=torch.int64 if tokens else torch.float32)


def profile_rates(
    name: str, build: "Build", example: "Tensor", rates: Collection[float], device: str
) -> "dict[float, Profile]":
    """Return the costs of the model of each rate; ``name`` is for error messages."""
    import torch

    from heterofl_flwr.nn.profile import profile

    profiles = {}
    for rate in sorted(rates, reverse=True):
        try:
            with torch.device(device):
                model = build(rate)
            profiles[rate] = profile(model, example)
        except ConfigError:
            raise
        except Exception as error:  # such as torch's for an image that is too small, or any error of a user's model
            what = f"{name} of rate {rate:g} with inputs of {tuple(example.shape[1:])}"
            raise ConfigError(f"{what}: {first_line(error)}") from error
    return profiles

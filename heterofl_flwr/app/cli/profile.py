"""``heterofl profile``: what the models of a mix cost, as the left columns of the paper's Tables 7 to 9."""

import argparse
import sys
from collections.abc import Collection
from itertools import combinations

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, first_line, load_function
from heterofl_flwr.core.formatting import count, render
from heterofl_flwr.core.levels import Mix, level_name
from heterofl_flwr.nn.build import called_with_rate, check_build, equal_levels
from heterofl_flwr.nn.models import PAPER, Build, Setup
from heterofl_flwr.nn.profile import MixProfile, Profile, mean_profile, profile
from heterofl_flwr.settings.auto_values import options_of
from heterofl_flwr.settings.flat import from_flat

OPTIONS = ("classes", "hidden", "norm")
"""Options of this package's models alone."""

HEADER = ("mix", "ratio", "parameters", "MACs", "MB")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    own = ":" in args.name
    for option in OPTIONS if own else ("tokens",):
        if getattr(args, option):
            raise ConfigError(f"--{option} is not for {args.name}: leave it out")
    if own:
        build, example = load_own(args.name, args.shape, tokens=args.tokens)
    else:
        given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
        setup = build_setup(args.name, args.shape, given)
        build, example = setup.build(), setup.example()
    mixes = {name: Mix.parse(name) for name in args.mix or all_mixes("abcde")}
    rates = {rate for mix in mixes.values() for rate in mix.rates}
    # On meta nothing takes memory, but a model of the user's may need values.
    profiles = profile_rates(args.name, build, example, rates, "cpu" if own else "meta")
    for warning in equal_levels(profiles):
        print(warning, file=sys.stderr)
    rows = []
    for name, mix in mixes.items():
        rows.append(row(name, mean_profile(profiles, mix), args.format))
        for rate in mix.rates if args.mix and len(mix.rates) > 1 else ():
            cost = mean_profile(profiles, Mix((rate,), (1,), mix.global_rate))
            rows.append(row(f"{name}: {level_name(rate)}", cost, args.format))
    print(render(HEADER, rows, args.format))
    return 0


def row(name: str, cost: MixProfile, style: str) -> tuple[str, ...]:
    """Return a row of the table."""
    if style == "csv":
        return name, *(format(number, ".12g") for number in (cost.ratio, cost.parameters, cost.macs, cost.megabytes))
    return name, f"{cost.ratio:.2f}", count(cost.parameters), count(cost.macs), f"{cost.megabytes:.2f}"


def all_mixes(levels: str) -> list[str]:
    """Return all mixes of equal shares of these levels, in the order of the paper's tables."""
    subsets = (subset for size in range(1, len(levels) + 1) for subset in combinations(levels, size))
    return ["-".join(subset) for subset in sorted(subsets, key=lambda subset: (subset[0], len(subset), subset))]


def build_setup(name: str, shape: tuple[int, ...] | None, given: dict[str, object]) -> Setup:
    """Return the paper's set-up of a data set, or one for a model, with the options that the user changed."""
    if name in PAPER:
        base = PAPER[name]
    elif name == "digits":
        model = from_flat({"data.name": name}).model
        base = Setup(model.name, (1, 8, 8), options={"channels": 1, "classes": 10, "hidden": model.hidden})
    else:
        base = next((setup for setup in PAPER.values() if setup.model == name), None) or Setup(name, (3, 32, 32))
    shape = shape or base.shape
    if len(shape) != len(base.shape):
        found, expected = ("x".join(map(str, sizes)) for sizes in (shape, base.shape))
        raise ConfigError(f"--shape {found}: {base.model} takes inputs like {expected}")
    images = {"channels": shape[0], "inputs": shape} if len(shape) > 1 else {}
    return Setup(base.model, shape, base.dtype, {**base.options, **options_of(base.model, images), **given})


def load_own(name: str, shape: tuple[int, ...] | None, *, tokens: bool) -> tuple[Build, Tensor]:
    """Return a function of the user's from a rate to a model, and a batch of one input."""
    build = load_function(name, "the model")
    check_build(build)
    if shape is None:
        raise ConfigError(f"{name} needs the shape of one input: add --shape, such as --shape 3x32x32")
    return called_with_rate(build), torch.zeros(1, *shape, dtype=torch.int64 if tokens else torch.float32)


def profile_rates(
    name: str, build: Build, example: Tensor, rates: Collection[float], device: str
) -> dict[float, Profile]:
    """Return what the model of each rate costs; each is built once."""
    profiles = {}
    for rate in sorted(rates, reverse=True):
        try:
            with torch.device(device):
                model = build(rate)
            profiles[rate] = profile(model, example)
        except ConfigError:
            raise
        except Exception as error:  # such as torch's for an image that is too small, or any of the user's own model
            what = f"{name} of rate {rate:g} with inputs of {tuple(example.shape[1:])}"
            raise ConfigError(f"{what}: {first_line(error)}") from error
    return profiles

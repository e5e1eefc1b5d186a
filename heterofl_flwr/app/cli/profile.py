"""``heterofl profile``: what the models of a mix cost, as the left columns of the paper's Tables 7 to 9."""

import argparse
from collections.abc import Sequence
from itertools import combinations

import torch

from heterofl_flwr.core.formatting import count, render
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError, first_line
from heterofl_flwr.nn.models import PAPER, Setup
from heterofl_flwr.nn.profile import MixProfile, mean_profile, profile
from heterofl_flwr.settings.auto_values import options_of
from heterofl_flwr.settings.flat import from_flat

HEADER = ("mix", "ratio", "parameters", "MACs", "MB")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    given = {"classes": args.classes, "hidden": args.hidden, "norm": args.norm}
    setup = build_setup(args.name, args.shape, {name: value for name, value in given.items() if value is not None})
    rows = []
    for name, cost in mix_costs(setup, args.mix or all_mixes("abcde")).items():
        if args.format == "csv":
            numbers = (cost.ratio, cost.parameters, cost.macs, cost.megabytes)
            cells = [format(number, ".12g") for number in numbers]
        else:
            cells = [f"{cost.ratio:.2f}", count(cost.parameters), count(cost.macs), f"{cost.megabytes:.2f}"]
        rows.append((name, *cells))
    print(render(HEADER, rows, args.format))
    return 0


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


def mix_costs(setup: Setup, names: Sequence[str]) -> dict[str, MixProfile]:
    """Return the mean cost of each mix. Every model is built once, without memory for its values."""
    mixes = {name: Mix.parse(name) for name in names}
    build, profiles = setup.build(), {}
    for rate in sorted({rate for mix in mixes.values() for rate in mix.rates}, reverse=True):
        try:
            with torch.device("meta"):
                model = build(rate)
            profiles[rate] = profile(model, setup.example())
        except RuntimeError as error:  # such as torch's for an image that is too small
            what = f"{setup.model} of rate {rate:g} with inputs of {setup.shape}"
            raise ConfigError(f"{what}: {first_line(error)}") from error
    return {name: mean_profile(profiles, mix) for name, mix in mixes.items()}

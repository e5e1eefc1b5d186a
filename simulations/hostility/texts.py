"""Run configs and mixes in which anything can stand."""

import math
import random
from collections.abc import Callable, Mapping

from heterofl_flwr import Mix
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import DEFAULTS, from_flat, to_flat
from simulations.hostility.mutations import ANY

PIECES = (
    "a",
    "1",
    "b9",
    "-",
    "--",
    "x",
    ".",
    "0.5",
    "1.0x1",
    "0",
    "e999999999",
    "z1",
    "9" * 50,
    "\x00",
    "\u0661",
    " ",
    "nan",
)


def trial(target: str, draw: random.Random) -> str:
    """Return what became of text: refused, harmless, or what is wrong."""
    try:
        return TRIALS[target](draw)
    except ConfigError:
        return "refused"
    except Exception as error:  # this is what is looked for
        return f"crashed: {type(error).__name__}: {error}"[:200]


def _settings(draw: random.Random) -> str:
    """Read a run config of which some values are anything."""
    keys = draw.sample(list(DEFAULTS), draw.randrange(1, 5))
    odd = {key: draw.choice([*ANY, *DEFAULTS.values(), _text(draw)]) for key in keys}
    if draw.random() < 0.1:
        odd[_text(draw)] = 1
    settings = from_flat({**DEFAULTS, **odd})
    return "harmless" if from_flat(to_flat(settings)) == settings else "changed: what was written back"


def _mix(draw: random.Random) -> str:
    """Read a mix."""
    mix = Mix.parse(_text(draw))
    sound = all(0 < rate <= 1 for rate in mix.rates) and math.isclose(sum(mix.shares), 1) and min(mix.counts) > 0
    return "harmless" if sound else "changed: no mix"


def _text(draw: random.Random) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.randrange(6)))


TRIALS: Mapping[str, Callable[[random.Random], str]] = {"settings": _settings, "mix": _mix}
"""What is read as text."""

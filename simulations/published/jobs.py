"""Which of the paper's jobs a run is, and where its settings differ from the published ones."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from heterofl_flwr.core.levels import LEVELS, Mix, level_name
from heterofl_flwr.settings import Flat, Settings, from_flat, preset, short_name, to_flat

DATA = ("mnist", "cifar10", "wikitext2")
SPLITS = MappingProxyType({"iid": "iid", "non-iid-2": "noniid"})
"""From the setting to the name of a split in the tables; other splits keep their own."""

CLIENTS_A_ROUND = 10

FREE = (
    "data.name",  # it may be written as the hub has it
    "data.root",
    "engine.",
    "evaluate.central",
    "evaluate.every",
    "evaluate.levels",
    "evaluate.metric",
    "fidelity.default",  # each quirk is a setting of its own
    "run.",
    "sample.min-nodes",
    "sample.min-replies",
    "sample.wait",
    "seed",
)
"""Settings, or groups of them, that leave a published job what it is."""


@dataclass(frozen=True, slots=True)
class Job:
    """What tells one job of the paper from another.

    What has no effect has one value: a single level is ``dynamic`` and has the Scaler, whatever its run says.

    Attributes
    ----------
    data, split
        Short name of the data set; ``iid``, ``noniid`` or another split's own name.
    mix
        As the paper writes it where the shares are equal (``a-e``), else with shares (``a1-e9``).
    assignment
        ``dynamic`` or ``fix``.
    norm, scaler, masked
        What the ablations vary.
    """

    data: str
    split: str
    mix: str
    assignment: str = "dynamic"
    norm: str = "sbn"
    scaler: bool = True
    masked: bool = True

    def __post_init__(self) -> None:
        """Give what has no effect its one value."""
        if "-" not in self.mix:
            object.__setattr__(self, "assignment", "dynamic")
            object.__setattr__(self, "scaler", True)

    @property
    def variant(self) -> tuple[str, ...]:
        """What differs from the data set's own model, in words."""
        norm = () if self.norm == usual_norm(self.data) else (f"norm {self.norm}",)
        return (*norm, *(() if self.scaler else ("no Scaler",)), *(() if self.masked else ("no mask",)))


def usual_norm(data: str) -> str:
    """Return the norm of the paper's model for a data set."""
    return str(preset(data, "iid")["model.norm"])


def short_mix(mix: Mix) -> str:
    """Return a mix as the paper writes it; mixes with equal shares have equal names."""
    divisor = math.gcd(*mix.counts)
    shares = Mix(mix.rates, tuple(count // divisor for count in mix.counts))
    names = [level_name(rate) for rate in shares.rates]
    return "-".join(names) if set(shares.counts) == {1} and set(names) <= set(LEVELS) else str(shares)


def job_of(settings: Settings) -> Job:
    """Return the job that settings describe, published or not."""
    data = short_name(settings.data.name)
    split = SPLITS.get(settings.data.split, settings.data.split)
    return Job(
        data=data,
        split=split,
        mix=short_mix(settings.mix),
        assignment=settings.assignment,
        norm=settings.model.norm,
        scaler=settings.model.scaler,
        masked=settings.train.mask_fill != "none",
    )


def differences(settings: Settings) -> tuple[str, ...]:
    """Return where settings differ from the published ones of the same job, such as ``num-rounds 3 instead of 200``.

    What the paper has not is compared with our own presets.
    """
    data = short_name(settings.data.name)
    foreign = [] if data in DATA else [f"data.name {data} is none of the paper's"]
    if settings.data.split not in SPLITS:
        foreign.append(f"data.split {settings.data.split} is none of the paper's")
    return (*foreign, *_differences(settings, data))


def _differences(settings: Settings, data: str) -> Iterator[str]:
    published = to_flat(from_flat(_identity(settings, data)))
    for key, value in to_flat(settings).items():
        if value != published[key] and not key.startswith(FREE):
            yield f"{key} {_shown(value)} instead of {_shown(published[key])}"


def _identity(settings: Settings, data: str) -> dict[str, Flat]:
    """Return what makes the job; all else is then as published."""
    masked = settings.train.mask_fill != "none"
    return {
        "data.name": data,
        "data.split": settings.data.split,
        "mix": str(settings.mix),
        "assignment": settings.assignment,
        "model.norm": settings.model.norm,
        "model.scaler": settings.model.scaler,
        "train.mask-fill": "auto" if masked else "none",
    }


def _shown(value: Flat) -> str:
    return "''" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)

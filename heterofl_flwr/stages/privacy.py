"""Client-level differential privacy: the options, the ledger of releases, and the moments of static batch norm."""

from collections.abc import Mapping
from typing import Annotated, Protocol

from pydantic import Field, Strict

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import check, group
from heterofl_flwr.core.differential_privacy import DEVIATION, Keystream, divergences, epsilon, in_steps, noised
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.nn.moments import LayerMoments, Moments, build_layer_moments

KINDS = TRAINING, MOMENTS = "training-releases", "moments-releases"


_LEAST, _MOST = 1e-8, 1e8
"""Of clips and noise: sums on the grid are exact within them (``core/differential_privacy.py``)."""

_OnGrid = Annotated[float, Strict(), Field(ge=_LEAST, le=_MOST), f"{_LEAST:g} to {_MOST:g}"]
_OnGridOrZero = Annotated[
    float, Strict(), check(lambda value: value == 0 or _LEAST <= value <= _MOST), f"0, or {_LEAST:g} to {_MOST:g}"
]


@group
class Privacy:
    """Options of client-level differential privacy with a trusted server."""

    clip: _OnGridOrZero = 0.0
    """L2 norm to which a client's change of its slice is shortened; 0 for no clipping"""
    noise: _OnGridOrZero = 0.0
    """standard deviation of the noise on the clients' sum, in multiples of clip; 0 for none"""
    delta: Annotated[float, Strict(), Field(gt=0, lt=1)] = 1e-5
    """delta at which epsilon is stated; below one over the number of clients"""
    moments_clip: _OnGrid = 10.0
    """L2 norm to which a client's static batch norm moments are shortened, means and second moments of all layers
    together; they get noise in multiples of it
    """

    def __post_init__(self) -> None:
        if self.noise and not self.clip:
            raise ConfigError(f"clip is {self.clip!r}, expected a number above 0 where there is noise")

    @property
    def step(self) -> float:
        """Distance of two points of the grid on which changes are summed; 0 where there is no noise."""
        return self.noise * self.clip / DEVIATION

    @property
    def moments_step(self) -> float:
        """The same for moments."""
        return self.noise * self.moments_clip / DEVIATION


class Ledger(Protocol):
    """Where the number of releases is kept so that it outlives the run; a ``RunFolder`` is one."""

    def releases(self) -> Mapping[str, float]:
        """Return the releases so far, by kind."""

    def write_releases(self, releases: Mapping[str, int]) -> None:
        """Keep the releases so far; they are on the disk when this returns."""


class Spent:
    """The releases of a run with noise, and their epsilon."""

    def __init__(self, privacy: Privacy) -> None:
        self._privacy = privacy
        self._ledger: Ledger | None = None
        self.releases = dict.fromkeys(KINDS, 0)

    def keep_in(self, ledger: Ledger) -> None:
        """Go on from the releases that a ledger knows, and write each there before anybody gets it.

        A run that is cut off and resumed repeats rounds with new noise. What it released before counts as well.
        """
        stored = ledger.releases()
        self.releases = {kind: max(number, int(stored.get(kind, 0))) for kind, number in self.releases.items()}
        self._ledger = ledger

    def add(self, kind: str, number: int = 1) -> None:
        """Count releases, before anybody gets them."""
        self.releases[kind] += number
        if self._ledger:
            self._ledger.write_releases(self.releases)

    def epsilon(self, further: int = 0) -> float:
        """Return the epsilon of the releases so far and of ``further`` ones."""
        number = sum(self.releases.values()) + further
        return epsilon(divergences(self._privacy.noise, number), self._privacy.delta) if number else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the releases so far and their epsilon."""
        return {
            "epsilon": self.epsilon(),
            "delta": self._privacy.delta,
            **{kind: float(number) for kind, number in self.releases.items()},
        }


def clip_moments(moments: Moments, privacy: Privacy) -> Moments:
    """Return a client's moments as one shortened vector of means and second moments; each client then counts once.

    They are in steps of the grid, as ``noise_moments`` expects their sums.
    """
    counted = {name: layer for name, layer in moments.layers.items() if layer.count}
    vector = {("first", name): layer.first_sum / layer.count for name, layer in counted.items()}
    vector |= {("second", name): layer.second_sum / layer.count for name, layer in counted.items()}
    short = in_steps(vector, privacy.moments_clip, privacy.moments_step)
    layers = {name: LayerMoments(1, short["first", name], short["second", name]) for name in counted}
    return Moments(moments.kind, {**moments.layers, **layers})


def noise_moments(merged: Mapping[float, Moments], privacy: Privacy) -> dict[float, Moments]:
    """Return the sums of several clients' clipped moments with noise on them, and no longer in steps."""
    stream = Keystream()

    def released(kind: Variant, layer: LayerMoments) -> LayerMoments:
        if not layer.count:
            return layer
        mean, second = (
            noised(total, privacy.moments_step, stream) / layer.count for total in (layer.first_sum, layer.second_sum)
        )
        # A variance cannot be negative: what noise says below 0 is no news to anybody.
        variance = (second if kind == "paper" else second - mean**2).clamp(min=1e-5)
        # Here the count is one of clients, and a single value would have no variance.
        return build_layer_moments(kind, max(layer.count, 2), mean, variance)

    return {
        rate: Moments(sums.kind, {name: released(sums.kind, layer) for name, layer in sums.layers.items()})
        for rate, sums in merged.items()
    }

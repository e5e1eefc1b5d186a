"""Differential privacy of clients: options, and an accountant of the spent privacy."""

import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field, Strict

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import check, group
from heterofl_flwr.core.clipping import in_steps
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.gaussian_noise import DEVIATION, Keystream, noised
from heterofl_flwr.nn.moments import LayerMoments, Moments, build_layer_moments

Kind = Literal["training-releases", "moments-releases"]
TRAINING: Kind = "training-releases"
MOMENTS: Kind = "moments-releases"
KINDS: tuple[Kind, ...] = (TRAINING, MOMENTS)

ORDERS: Sequence[float] = tuple(1 + 2 ** (step / 8) for step in range(-80, 161))
"""Rényi orders from 1.001 to a million. For a large divergence, an order just above 1 gives the smallest epsilon."""

_LEAST, _MOST = 1e-8, 1e8
"""Smallest and largest clip and noise for which sums of rounded noise are exact (see ``core/gaussian_noise.py``)."""

_OnGrid = Annotated[float, Strict(), Field(ge=_LEAST, le=_MOST), f"{_LEAST:g} to {_MOST:g}"]
_OnGridOrZero = Annotated[
    float, Strict(), check(lambda value: value == 0 or _LEAST <= value <= _MOST), f"0, or {_LEAST:g} to {_MOST:g}"
]


@group
class Privacy:
    """Options of client-level differential privacy with a trusted server."""

    clip: _OnGridOrZero = 0.0
    """upper bound on the L2 norm of the change of a client's slice; larger changes are clipped. 0: no clipping"""
    noise: _OnGridOrZero = 0.0
    """standard deviation, in multiples of clip, of the noise on the sum of the clients' changes; 0: no noise"""
    delta: Annotated[float, Strict(), Field(gt=0, lt=1)] = 1e-5
    """delta for which epsilon is computed; set it below 1 / (number of clients)"""
    moments_clip: _OnGrid = 10.0
    """upper bound on the L2 norm of the vector of a client's moments for static batch norm (the means and second
    moments of all layers); longer vectors are clipped. The sum of the clients' vectors gets noise whose standard
    deviation is this bound times the option noise
    """

    def __post_init__(self) -> None:
        if self.noise and not self.clip:
            raise ConfigError(f"clip is {self.clip!r}, expected a number above 0 where there is noise")

    @property
    def step(self) -> float:
        """Unit of the fixed-point numbers that represent clients' changes; 0 without noise."""
        return self.noise * self.clip / DEVIATION

    @property
    def moments_step(self) -> float:
        """Unit of the fixed-point numbers that represent clients' moments; 0 without noise."""
        return self.noise * self.moments_clip / DEVIATION


@dataclass(frozen=True, slots=True)
class Releases:
    """Number of published noisy results (*releases*) of the same kind, noise, clip and source."""

    kind: Kind
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)]  #: Standard deviation, in multiples of ``clip``.
    clip: float  #: L2 norm to which one client's contribution was clipped.
    number: Annotated[int, Field(ge=0)]
    source: str = ""  #: Random id of the ``Spent`` that counted these releases.


class Ledger(Protocol):
    """Persistent storage for the release counts of a run, such as a ``RunFolder``."""

    def releases(self) -> Sequence[Releases]:
        """Return the stored releases."""

    def write_releases(self, releases: Sequence[Releases]) -> None:
        """Store the releases on disk before returning."""


class Spent:
    """Privacy accountant of a strategy.

    It counts the releases of all the strategy's runs. For a resumed run, these include the releases before the resume.
    """

    def __init__(self, privacy: Privacy) -> None:
        self._privacy = privacy
        self._ledger: Ledger | None = None
        self._source = secrets.token_hex(8)
        self._releases: dict[tuple[str, float, float, str], Releases] = {}

    @property
    def releases(self) -> tuple[Releases, ...]:
        """Releases so far, one entry for each combination of kind, noise, clip and source."""
        return tuple(self._releases.values())

    def merge(self, releases: Iterable[Releases]) -> None:
        """Add releases. Of two entries that differ only in their number, keep the larger number."""
        for entry in releases:
            key = entry.kind, entry.noise, entry.clip, entry.source
            if key not in self._releases or self._releases[key].number < entry.number:
                self._releases[key] = entry

    def keep_in(self, ledger: Ledger) -> None:
        """Count the releases stored in ``ledger`` too; from now on, each ``add`` writes all releases to ``ledger``."""
        self.merge(ledger.releases())
        self._ledger = ledger

    def add(self, kind: Kind, number: int = 1) -> None:
        """Count new releases; call this before they are published."""
        privacy = self._privacy
        clip = privacy.clip if kind == TRAINING else privacy.moments_clip
        before = self._releases.get((kind, privacy.noise, clip, self._source))
        total = number + (before.number if before else 0)
        self.merge([Releases(kind, privacy.noise, clip, total, self._source)])
        if self._ledger:
            self._ledger.write_releases(self.releases)

    def epsilon(self, further: int = 0) -> float:
        """Return epsilon of all releases so far and of ``further`` more releases at the current noise."""
        by_noise = Counter({self._privacy.noise: further})
        for entry in self.releases:
            by_noise[entry.noise] += entry.number
        by_order = [divergences(noise, number) for noise, number in by_noise.items() if number]
        spent = [math.fsum(values) for values in zip(*by_order, strict=True)]
        return epsilon(spent, self._privacy.delta) if spent else 0.0

    def metrics(self) -> dict[str, float]:
        """Return epsilon, delta and the number of releases of each kind."""
        numbers: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        for entry in self.releases:
            numbers[entry.kind] += entry.number
        return {"epsilon": self.epsilon(), "delta": self._privacy.delta, **numbers}


def clip_moments(moments: Moments, privacy: Privacy) -> Moments:
    """Clip a client's means and second moments of all layers as one vector; return them in fixed-point steps.

    Layers without data are unchanged. In the result, all other layers have the count 1.
    """
    counted = {name: layer for name, layer in moments.layers.items() if layer.count}
    vector = {("first", name): layer.first_sum / layer.count for name, layer in counted.items()}
    vector |= {("second", name): layer.second_sum / layer.count for name, layer in counted.items()}
    short = in_steps(vector, privacy.moments_clip, privacy.moments_step)
    layers = {name: LayerMoments(1, short["first", name], short["second", name]) for name in counted}
    return Moments(moments.kind, {**moments.layers, **layers})


def noise_moments(merged: Mapping[float, Moments], privacy: Privacy) -> dict[float, Moments]:
    """Return batch norm moments averaged over clients, with noise added to the sums before the division.

    ``merged`` has the sums of the clients' clipped moments by rate, as multiples of ``privacy.moments_step``. A layer
    with count 0 is returned unchanged.
    """
    stream = Keystream()

    def released(kind: Variant, layer: LayerMoments) -> LayerMoments:
        if not layer.count:
            return layer
        mean, second = (
            noised(total, privacy.moments_step, stream) / layer.count for total in (layer.first_sum, layer.second_sum)
        )
        # The clamp reveals nothing, because it uses only values that have noise.
        variance = (second if kind == "paper" else second - mean**2).clamp(min=1e-5)
        # Here the count is the number of clients, and a variance needs a count of two or more.
        return build_layer_moments(kind, max(layer.count, 2), mean, variance)

    return {
        rate: Moments(sums.kind, {name: released(sums.kind, layer) for name, layer in sums.layers.items()})
        for rate, sums in merged.items()
    }


def divergences(noise: float, releases: int, orders: Sequence[float] = ORDERS) -> list[float]:
    """Return the Rényi divergence of ``releases`` noisy sums, at each order.

    ``noise`` is the standard deviation of the noise, divided by the clipping norm.
    """
    return [releases * order / (2 * noise**2) for order in orders]


def epsilon(spent: Sequence[float], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the epsilon of differential privacy for a ``delta``.

    ``spent`` has the Rényi divergence at each order. The conversion is proposition 12 of Canonne, Kamath and Steinke
    (2020).
    """
    return min(
        max(divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1), 0.0)
        for divergence, order in zip(spent, orders, strict=True)
    )

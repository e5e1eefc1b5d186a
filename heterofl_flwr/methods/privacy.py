"""Differential privacy of whole clients: what is clipped and noised, and what a run has given away so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from heterofl_flwr.core.accountant import divergences, epsilon
from heterofl_flwr.core.noise import secret_generator
from heterofl_flwr.errors import check_fields
from heterofl_flwr.nn.moments import LayerMoments, Moments

TRAINING, MOMENTS = "training-releases", "moments-releases"


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """How the clients' data are protected from those who see the model; the server itself is trusted.

    Attributes
    ----------
    clip
        L2 norm to which a client's change of its slice is shortened; 0 for no clipping.
    noise
        Standard deviation of the noise on the clients' sum, in multiples of ``clip``; 0 for none.
    delta
        At which epsilon is stated; below one over the number of clients.
    moments_clip
        L2 norm to which a client's static batch norm moments are shortened: means and second moments of all layers
        together. They get noise in multiples of it.
    """

    clip: float = 0.0
    noise: float = 0.0
    delta: float = 1e-5
    moments_clip: float = 10.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, all at once."""
        check_fields(
            self,
            (
                ("clip", 0 <= self.clip < math.inf, "a number of 0 or more"),
                ("noise", 0 <= self.noise < math.inf, "a number of 0 or more"),
                ("clip", self.clip > 0 or not self.noise, "a number above 0 where there is noise"),
                ("delta", 0 < self.delta < 1, "a number between 0 and 1"),
                ("moments_clip", 0 < self.moments_clip < math.inf, "a number above 0"),
            ),
            "privacy: ",
        )


class Spent:
    """What a run has given away.

    Parameters
    ----------
    privacy : Privacy
        What protects it.
    fraction_train, fraction_evaluate : float
        The share of the clients that take part in a round, and in an evaluation.
    """

    def __init__(self, privacy: Privacy, fraction_train: float, fraction_evaluate: float) -> None:
        self._privacy = privacy
        self._rates = {TRAINING: fraction_train, MOMENTS: fraction_evaluate}
        self.releases = {TRAINING: 0, MOMENTS: 0}

    def resume(self, known: Mapping[str, float]) -> None:
        """Go on from what a record says."""
        self.releases = {kind: int(known.get(kind, 0)) for kind in self.releases}

    def facts(self) -> dict[str, float]:
        """Return the releases so far and their epsilon; nothing where there is no noise.

        ``epsilon`` holds however clients are drawn. ``epsilon-sampled`` counts on chance: that each takes part
        independently, with the probability of its share.
        """
        if not self._privacy.noise:
            return {}
        return {
            "epsilon": self._epsilon(sampled=False),
            "epsilon-sampled": self._epsilon(sampled=True),
            "delta": self._privacy.delta,
            **{kind: float(number) for kind, number in self.releases.items()},
        }

    def _epsilon(self, *, sampled: bool) -> float:
        if not any(self.releases.values()):
            return 0.0
        kinds = [
            [times * own for own in divergences(self._privacy.noise, self._rates[kind] if sampled else 1.0)]
            for kind, times in self.releases.items()
        ]
        return epsilon([math.fsum(own) for own in zip(*kinds, strict=True)], self._privacy.delta)


def clip_moments(moments: Moments, clip: float) -> Moments:
    """Return a client's moments as one vector of means and second moments, shortened; each client then counts once."""
    counted = {name: layer for name, layer in moments.layers.items() if layer.count}
    parts = {name: (layer.first / layer.count, layer.second / layer.count) for name, layer in counted.items()}
    length = math.hypot(*(part.norm().item() for own in parts.values() for part in own))
    share = min(1.0, clip / length) if length else 1.0
    shortened = {name: LayerMoments(1, first * share, second * share) for name, (first, second) in parts.items()}
    return Moments(moments.kind, {**moments.layers, **shortened})


def noise_moments(merged: Mapping[float, Moments], privacy: Privacy) -> dict[float, Moments]:
    """Return clipped moments of several clients with noise on their sums."""
    deviation = privacy.noise * privacy.moments_clip
    generator = secret_generator()

    def draw(own: torch.Tensor) -> torch.Tensor:
        return own + deviation * torch.randn(own.shape, generator=generator, dtype=torch.float64)

    # A variance cannot be negative: what noise says below 0 is no news to anybody.
    return {
        rate: Moments(
            own.kind,
            {
                name: LayerMoments(layer.count, draw(layer.first), draw(layer.second).clamp(min=1e-5 * layer.count))
                if layer.count
                else layer
                for name, layer in own.layers.items()
            },
        )
        for rate, own in merged.items()
    }

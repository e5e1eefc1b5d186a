"""Sum of clients' batch norm moments that is robust against a minority of false moments."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from statistics import median

import torch

from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.nn.moments import LayerMoments, Moments, build_layer_moments

SPREAD, CLOSE, WEIGHT = 3.0, 0.25, 2.0
"""Parameters of ``sum_robust``. Means and variances are clipped to an interval around their median. To each side, the
interval reaches ``SPREAD`` times the median absolute deviation, but at least ``CLOSE`` times the median standard
deviation for means, and ``CLOSE`` times the median variance for variances. Counts are limited to ``WEIGHT`` times the
median count.
"""


def sum_robust(clients: Sequence[Moments]) -> Moments:
    """Return the sum of clients' moments, robust against a minority of false moments.

    For each channel, means and variances are clipped to an interval around their median over clients. Counts are
    limited to ``WEIGHT`` times the median count. If fewer than three clients have data of a layer, its
    moments are added unchanged.
    """
    kind = clients[0].kind
    layers = {name: _sum_robust(kind, [moments.layers[name] for moments in clients]) for name in clients[0].layers}
    return Moments(kind, layers)


def _sum_robust(kind: Variant, layers: Sequence[LayerMoments]) -> LayerMoments:
    seen = [layer for layer in layers if layer.count]
    if len(seen) < 3:
        return reduce(add, layers)
    statistics = [layer.statistics(kind) for layer in seen]
    means, variances = (torch.stack(values) for values in zip(*statistics, strict=True))  # (clients, channels)
    usual = _median(variances)
    near = zip(_clipped(means, CLOSE * usual.sqrt()), _clipped(variances, CLOSE * usual), strict=True)
    most = int(WEIGHT * median(layer.count for layer in seen))
    return reduce(
        add,
        # Moments that need no clipping are not recomputed, so they keep their bits.
        (
            layer
            if layer.count <= most and all(map(torch.equal, values, clipped))
            else build_layer_moments(kind, min(layer.count, most), *clipped)
            for layer, values, clipped in zip(seen, statistics, near, strict=True)
        ),
    )


def _clipped(values: torch.Tensor, close: torch.Tensor) -> torch.Tensor:
    """Clip values to an interval around their median over clients.

    The interval reaches ``SPREAD`` times the median absolute deviation to each side, or ``close`` if this is larger.
    ``values`` has the shape (clients, channels), and ``close`` (channels,).
    """
    middle = _median(values)
    reach = torch.maximum(SPREAD * _median((values - middle).abs()), close)
    return values.clamp(middle - reach, middle + reach)


def _median(values: torch.Tensor) -> torch.Tensor:
    """Return the median over axis 0; of an even number of values, the mean of the middle two."""
    ordered = values.sort(0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2

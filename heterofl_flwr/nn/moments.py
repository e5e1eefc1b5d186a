"""Moments of the inputs of batch norm layers: sums from which means and variances are computed."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from heterofl_flwr.common.errors import ConfigError, DataError, ShapeError
from heterofl_flwr.core.fidelity import Fidelity, Variant

_PARTS = ("count", "first", "second")

POSITIONS = 2**23
"""Upper bound on the number of values per example and channel; enough for a volume with 200 voxels a side."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerMoments:
    """Sums over the inputs of one batch norm layer: a count, and two float64 vectors with an entry for each channel."""

    count: int  # number of batches (paper) or of values per channel (fixed)
    first_sum: torch.Tensor  # sum of batch means (paper) or of all values (fixed)
    second_sum: torch.Tensor  # sum of unbiased batch variances (paper) or of all squares (fixed)

    def __add__(self, term: "LayerMoments") -> "LayerMoments":
        return LayerMoments(self.count + term.count, self.first_sum + term.first_sum, self.second_sum + term.second_sum)

    def statistics(self, kind: Variant) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the variance of each channel."""
        mean = self.first_sum / self.count  # (channels,)
        if kind == "paper":
            return mean, self.second_sum / self.count
        return mean, ((self.second_sum - self.first_sum * mean) / (self.count - 1)).clamp(min=0)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The moments of every batch norm layer of a model, over the data of one or more clients.

    ``a + b`` are the moments over the data of both. ``a`` and ``b`` must have the same kind and layers.

    Attributes
    ----------
    kind
        ``paper``: batch means and batch variances are averaged with equal weight. ``fixed``: moments are computed over
        all samples and positions.
    layers
        Moments by layer name. The count of a layer without data is 0.
    """

    kind: Variant
    layers: Mapping[str, LayerMoments]

    def __post_init__(self) -> None:
        Fidelity(moments=self.kind)
        for name, layer in self.layers.items():
            shapes = tuple(layer.first_sum.shape), tuple(layer.second_sum.shape)
            if layer.first_sum.dim() != 1 or shapes[0] != shapes[1]:
                raise ShapeError(f"moments of {name}: expected two vectors of equal length, got {shapes}")
            if layer.count < 0:
                raise DataError(f"moments of {name}: a count of {layer.count} is not usable")
            if not (layer.first_sum.isfinite() & layer.second_sum.isfinite()).all():
                raise DataError(
                    f"moments of {name} are not finite: the data holds NaN or infinities, or training has diverged"
                )

    def __add__(self, term: "Moments") -> "Moments":
        return Moments(self.kind, {name: layer + term.layers[name] for name, layer in self.layers.items()})

    def statistics(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the variance of a layer's inputs by channel, in float64."""
        return self.layers[name].statistics(self.kind)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all counts and sums as tensors, named ``<kind>.<layer>.<part>``.

        A part is ``count``, ``first`` or ``second``.
        """
        return {
            f"{self.kind}.{name}.{part}": torch.as_tensor(value)
            for name, layer in self.layers.items()
            for part, value in zip(_PARTS, (layer.count, layer.first_sum, layer.second_sum), strict=True)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> "Moments":
        """Return moments from the result of ``to_tensors``. Raise ``HeteroFLError`` for other tensors."""
        kinds = {key.split(".", 1)[0] for key in tensors}
        if len(kinds) != 1:
            raise DataError(f"expected moments of one kind, got {', '.join(sorted(kinds)) or 'none at all'}")
        kind = kinds.pop()
        names = list(dict.fromkeys(key.partition(".")[2].rpartition(".")[0] for key in tensors))
        expected = {f"{kind}.{name}.{part}" for name in names for part in _PARTS}
        if expected != set(tensors):
            raise DataError(f"moments are incomplete or unknown: {', '.join(sorted(expected ^ set(tensors)))}")
        layers = {name: _read_layer(*(tensors[f"{kind}.{name}.{part}"] for part in _PARTS)) for name in names}
        return cls(kind, layers)  # type: ignore[arg-type]  # checked when constructed


class MomentsByRate(dict[float, Moments]):
    """Moments of the model of each rate. ``[rate]`` raises ``ConfigError`` for a rate without moments."""

    def __missing__(self, rate: float) -> Moments:
        raise ConfigError(
            f"there are no moments of rate {rate:g}, only of {', '.join(f'{known:g}' for known in self) or 'none'}: "
            f"clients measure them for the models that they evaluate (fraction_evaluate above 0; for each level "
            f"Evaluation(levels=True)), or you measure them with heterofl_flwr.nn.collect_moments(model, loader)"
        )


def check_layers(moments: Moments, channels: Mapping[str, int]) -> None:
    """Raise ``ShapeError`` if the moments have other layers or numbers of channels than ``channels``."""
    sizes = {name: len(layer.first_sum) for name, layer in moments.layers.items()}
    faults = [f"{name} is missing" for name in channels if name not in sizes]
    faults += [f"{name} is unknown" for name in sizes if name not in channels]
    faults += [
        f"{name} has {sizes[name]} channels, expected {expected}"
        for name, expected in channels.items()
        if sizes.get(name, expected) != expected
    ]
    if faults:
        raise ShapeError(f"moments are of another model: {'; '.join(faults)}")


def check_possible(moments: Moments, examples: int) -> None:
    """Raise ``DataError`` if no data with up to ``examples`` examples can have these moments."""
    most, what = (examples, "batches") if moments.kind == "paper" else (examples * POSITIONS, "values a channel")
    for name, layer in moments.layers.items():
        if layer.count > most:
            raise DataError(
                f"moments of {name} count {layer.count:,} {what}, expected up to {most:,}: a client "
                f"has up to {examples:,} examples (server.max-examples)"
            )
        count, firsts, seconds = layer.count, layer.first_sum.double(), layer.second_sum.double()
        largest = count * torch.finfo(torch.float32).max
        fits = (firsts.abs() <= largest) & (seconds >= 0) & (seconds <= largest)
        if moments.kind == "fixed":
            # A variance needs two values or more.
            fits &= (seconds * count >= firsts**2 * (1 - 1e-6)) & (count != 1)
        if not fits.all():
            raise DataError(f"moments of {name} are those of no data: a count of {count} does not fit its sums")


def build_layer_moments(kind: Variant, count: int, mean: torch.Tensor, variance: torch.Tensor) -> LayerMoments:
    """Return a layer's moments from its mean and variance; the inverse of ``LayerMoments.statistics``."""
    second = variance * count if kind == "paper" else variance * (count - 1) + mean**2 * count
    return LayerMoments(count, mean * count, second)


def _read_layer(count: torch.Tensor, firsts: torch.Tensor, seconds: torch.Tensor) -> LayerMoments:
    if count.numel() != 1 or count.dtype != torch.int64:
        description = f"{count.dtype} of shape {tuple(count.shape)}"
        raise ShapeError(f"a count of moments is {description}, expected one number of torch.int64")
    if not firsts.is_floating_point() or not seconds.is_floating_point():
        raise DataError(f"sums of moments are {firsts.dtype} and {seconds.dtype}, expected torch.float64")
    return LayerMoments(int(count), firsts.double(), seconds.double())

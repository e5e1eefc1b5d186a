"""Order of channels by importance."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core.axes import Axis, CoupledAxis, positions
from heterofl_flwr.core.slice_plan import Plan

Places = Sequence[tuple[int, int]]
"""Group and channel of each entry of an axis. Each group is sorted separately; entries of group -1 do not move."""


class ChannelOrder:
    """Order of the global model's channels by importance. Reordering does not change the model's outputs.

    Parameters
    ----------
    model : nn.Module
        The global model.
    plans : Sequence[Plan]
        The prefix slice of each rate, from the largest to the smallest.
    margin : float
        Advantage of channels in the current slices: before sorting, each channel's norm is multiplied by ``1 + margin``
        for every slice that contains the channel.
    """

    def __init__(self, model: nn.Module, plans: Sequence[Plan], margin: float = 0.0) -> None:
        if lacking := plans[0].axes.keys() - plans[-1].axes.keys():
            raise ConfigError(
                f"slice_rule='important' orders channels, and the smallest slice has no {listed(lacking, 3)}: "
                f"expected a model that shrinks in width alone, or slice_rule='prefix'"
            )
        rule = vars(model).get("plan_rule")  # set by elastic
        places: Mapping[str, Mapping[int, Places]] = (
            _places_by_length(plans[-1]) if rule is None else rule.places(plans[-1].axes)
        )
        entries = {entry for axes in places.values() for rows in axes.values() for entry in rows if entry[0] >= 0}
        sizes = {group: channel + 1 for group, channel in sorted(entries)}  # a group's largest channel comes last
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        self._groups = [slice(start, start + sizes[group]) for group, start in starts.items()]
        # For each parameter and axis, each entry's channel, numbered over all groups; -1 if an entry has no channel.
        self._channels = {
            name: {
                axis: torch.tensor([starts[group] + channel if group >= 0 else -1 for group, channel in rows])
                for axis, rows in axes.items()
            }
            for name, axes in places.items()
        }
        self._check_groups(model, traced=rule is not None)
        # A channel's norm is multiplied by 1 + margin for each slice that holds the channel now.
        self._factors = torch.ones(sum(sizes.values()), dtype=torch.float64)
        for plan in plans:
            slices = [
                channels[sorted(positions(plan.axes[name][axis]))]
                for name, axes in self._channels.items()
                for axis, channels in axes.items()
            ]
            channels_held = torch.cat([torch.tensor([-1]), *slices]).unique()
            self._factors[channels_held[channels_held >= 0]] *= 1 + margin

    def _check_groups(self, model: nn.Module, *, traced: bool) -> None:
        """Raise ``ConfigError`` if permuting channels may change the model's outputs."""
        faults = set() if traced else self._find_unknown(model)
        for name, axes in self._channels.items():
            for channels in axes.values():
                counts = (channels[channels >= 0]).bincount(minlength=self._groups[-1].stop)
                if any(len(counts[group][counts[group] > 0].unique()) > 1 for group in self._groups):
                    faults.add(name)
        if faults:
            raise ConfigError(
                f"slice_rule='important' moves channels, and it is unknown which layers write or read the channels of "
                f"{listed(faults)} (behind Flatten, or in a group norm): make the model by elastic, which knows, or "
                f"expected slice_rule='prefix'"
            )

    def _find_unknown(self, model: nn.Module) -> set[str]:
        """Return the names of weights with channels that no layer outputs, or that no other layer takes as inputs.

        The names of ``GroupNorm`` weights are included if the layer has several groups of several channels each,
        because a channel must not move to another group of the layer.
        """
        layers = {f"{name}.weight": layer for name, layer in model.named_modules()}
        faults = {
            name
            for name, layer in layers.items()
            if isinstance(layer, nn.GroupNorm)
            and 1 < layer.num_groups < layer.num_channels
            and self._channels.get(name, True)  # a group norm without parameters may have channels that move
        }
        # With weight norm, a layer has several weights, and their names are longer than "<layer>.weight".
        inputs_first = tuple(
            f"{name}." for name, layer in model.named_modules() if isinstance(layer, nn.Embedding | _ConvTransposeNd)
        )
        matrices = {name: axes for name, axes in self._channels.items() if model.get_parameter(name).dim() > 1}
        for group in self._groups:
            inside = {
                (name, axis)
                for name, axes in matrices.items()
                for axis, channels in axes.items()
                if ((channels >= group.start) & (channels < group.stop)).any()
            }
            # The first axis of a weight has the layer's outputs, except in embeddings and transposed convolutions.
            second = {name for name, _ in inside if name.startswith(inputs_first)}
            sources = {name for name, axis in inside if (axis == 0) != (name in second)}
            targets = {name for name, axis in inside if (axis == 0) == (name in second)}
            if not sources or not targets or len(sources | targets) < 2:
                faults |= sources | targets
        return faults

    @torch.no_grad()
    def importance(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the importance of each channel, as one tensor for each group of channels.

        A channel's importance is the L2 norm of its entries in all parameters.
        """
        squares = torch.zeros_like(self._factors)
        for name, axes in self._channels.items():
            entries = state[name].double().cpu().square()
            for axis, channels in axes.items():
                sums = entries.movedim(axis, 0).reshape(len(channels), -1).sum(1)  # (length,)
                squares.index_add_(0, channels[channels >= 0], sums[channels >= 0])
        return [squares[group].sqrt() for group in self._groups]

    def find(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """Return the new order of channels, or None if no channel moves.

        Channels are numbered over all groups. Element i is the current number of the channel that moves to place i.
        """
        order = [
            group.start + (norms * self._factors[group]).argsort(descending=True, stable=True)
            for group, norms in zip(self._groups, self.importance(state), strict=True)
        ]
        joined = torch.cat([torch.empty(0, dtype=torch.long), *order])
        return None if torch.equal(joined, torch.arange(len(joined))) else joined

    def apply(self, order: Tensor, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` with its channels in a new order.

        ``tensor`` is the parameter ``name``, or the momentum of this parameter.
        """
        for axis, channels in self._channels.get(name, {}).items():
            new = torch.where(channels < 0, channels, order[channels])
            # Entries of one channel, such as those of several heads or pixels, keep their order.
            index = torch.empty_like(channels)
            index[new.argsort(stable=True)] = channels.argsort(stable=True)
            tensor = tensor.index_select(axis, index.to(tensor.device))
        return tensor


def _places_by_length(plan: Plan) -> dict[str, dict[int, Places]]:
    """Return the group and channel of each entry on the sliced axes, by parameter and axis.

    Axes with equally many channels belong to one group.
    """
    return {
        name: {number: _places(axis) for number, axis in enumerate(axes) if axis.local_size < axis.size}
        for name, axes in plan.axes.items()
    }


def _places(axis: Axis) -> Places:
    if isinstance(axis, CoupledAxis):
        return [(axis.groups[group][0] if group >= 0 else -1, channel) for group, channel in axis.places]
    length = axis.part[0]
    return [(length, place % length) for place in range(axis.size)]

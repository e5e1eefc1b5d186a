"""Penalty terms of a client's loss."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError

Term = Callable[[nn.Module], Tensor | float]
"""A term of the loss that depends on the model alone."""


class AlignedQuadratic(NamedTuple):
    """A ``Quadratic`` whose tensors are in the order of ``model.parameters()``.

    ``centers`` is empty if there is no quadratic term, and ``directions`` if there is no linear term.
    """

    strength: float
    centers: Sequence[Tensor]
    directions: Sequence[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """The penalty ``strength / 2 * |w - center|^2 + <direction, w>`` on a model's parameters ``w``.

    Attributes
    ----------
    strength
        Weight of the quadratic term.
    center, direction
        Tensors by parameter name. Parameters that are not in ``center`` have no quadratic term. Parameters that
        are not in ``direction`` have no linear term.
    """

    strength: float = 0.0
    center: Mapping[str, Tensor] = field(default_factory=dict)
    direction: Mapping[str, Tensor] = field(default_factory=dict)
    _moved: dict[tuple[int, str], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, model: nn.Module) -> Tensor | float:
        """Return the penalty on a model's trained parameters; 0 if those with a term are frozen.

        Raise ``ConfigError`` if no parameter of the model has a quadratic or linear term.
        """
        terms: list[Tensor] = []
        parameters = dict(model.named_parameters())
        if parameters.keys().isdisjoint([*self.center, *self.direction]):
            raise ConfigError(
                f"this {type(model).__name__} has none of the parameters that were received: give task.penalty what "
                f"task.model() returned, not a wrapper of it"
            )
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            if self.strength and name in self.center:
                center = self._moved_to(parameter, name, self.center)
                terms.append(self.strength / 2 * (parameter - center).square().sum())
            if name in self.direction:
                terms.append((parameter * self._moved_to(parameter, name, self.direction)).sum())
        return torch.stack(terms).sum() if terms else 0.0

    def _moved_to(self, parameter: Tensor, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        key = id(tensors), name
        self._moved[key] = self._moved.get(key, tensors[name]).to(parameter)
        return self._moved[key]

    def aligned(self, model: nn.Module) -> AlignedQuadratic:
        """Return the penalty with lists of centers and directions in the order of the model's parameters.

        A parameter without a center gets its current value as center, and a parameter without a direction gets 0. The
        centers are empty if ``strength`` is 0, and the directions are empty if no parameter has a direction.
        """
        named = list(model.named_parameters())
        centers = [self.center.get(name, parameter.detach().clone()) for name, parameter in named if self.strength]
        zero = torch.zeros(())
        directions = [
            self.direction.get(name, zero.expand_as(parameter)) for name, parameter in named if self.direction
        ]
        return AlignedQuadratic(self.strength, centers, directions)

    def covers(self, model: nn.Module) -> bool:
        """Return True if ``strength`` is 0 or each trained parameter has a center.

        Otherwise, the result of ``aligned`` has quadratic terms that this penalty does not have.
        """
        return not self.strength or all(
            name in self.center for name, parameter in model.named_parameters() if parameter.requires_grad
        )

    @classmethod
    def sum(cls, quadratics: Iterable["Quadratic"]) -> "Quadratic":
        """Return one penalty that equals the sum of ``quadratics`` up to a constant. The gradients are equal.

        All quadratics with a strength other than 0 must have centers for the same parameters.
        """
        total = cls()
        for quadratic in quadratics:
            strength = total.strength + quadratic.strength
            center = total.center if total.strength else quadratic.center
            if total.strength and quadratic.strength:
                share = quadratic.strength / strength
                center = {name: tensor.lerp(quadratic.center[name], share) for name, tensor in total.center.items()}
            direction = dict(total.direction)
            for name, tensor in quadratic.direction.items():
                direction[name] = direction[name] + tensor if name in direction else tensor
            total = cls(strength, center, direction)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Penalty:
    """The sum of a quadratic penalty and other functions of the model."""

    quadratic: Quadratic | None = None
    terms: Sequence[Term] = ()

    @classmethod
    def of(cls, quadratics: Iterable[Quadratic], terms: Sequence[Term] = ()) -> "Penalty":
        """Return the sum of penalties.

        The first quadratic with a strength other than 0 is merged with all quadratics that have centers for the same
        parameters, and with all quadratics of strength 0. The remaining quadratics become terms.
        """
        quadratics = [term for term in quadratics if (term.strength and term.center) or term.direction]
        names = next((quadratic.center.keys() for quadratic in quadratics if quadratic.strength), None)
        alike = [quadratic for quadratic in quadratics if not quadratic.strength or quadratic.center.keys() == names]
        separate = [quadratic for quadratic in quadratics if quadratic not in alike]
        return cls(Quadratic.sum(alike) if alike else None, (*terms, *separate))

    def __bool__(self) -> bool:
        return self.quadratic is not None or bool(self.terms)

    def __call__(self, model: nn.Module) -> Tensor | float:
        """Return the penalty of a model; 0 if there is none."""
        total: Tensor | float = 0.0 if self.quadratic is None else self.quadratic(model)
        for term in self.terms:
            total = total + term(model)
        return total

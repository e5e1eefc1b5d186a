"""State of a trace, and integers that record the tensor axis from which the model's code got them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from heterofl_flwr.common.errors import UnsupportedLayerError
from heterofl_flwr.elastic_models.channels import Positions, Row, Rows


class Source:
    """Source of a length: an axis of a tensor, or an integer attribute of a layer."""

    def __init__(self, trace: "Trace", make: Callable[[], Row]) -> None:
        self.trace = trace
        self._make = make

    @cached_property
    def row(self) -> Row:
        """Positions of the axis: integers that identify its entries."""
        return self._make()


def _computed(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def compute(self: "Length", *operands: Any) -> object:
        result = plain(self, *operands)
        if type(result) is not int:
            return result
        operand = operands[0] if operands else 1
        sources, divisors = getattr(operand, "sources", ()), getattr(operand, "divisors", ())
        exact = self.exact and getattr(operand, "exact", True)
        if exact and name == "__mul__":
            return Length.of(result, self.sources + sources, self.divisors + divisors)
        if exact and name == "__floordiv__" and int(self) == result * int(operand):
            return Length.of(result, self.sources + divisors, self.divisors + sources)
        return Length.of(result, self.sources + self.divisors + sources + divisors, exact=False)

    return compute


def _compared(name: str) -> Callable[..., Any]:
    # Lengths of different traces are never equal, so that a cached function (``functools.lru_cache``) is called anew.
    plain = getattr(int, name)

    def compare(self: "Length", operand: object) -> Any:
        if name in ("__eq__", "__ne__") and isinstance(operand, Length) and operand.trace is not self.trace:
            return name == "__ne__"
        if isinstance(operand, int | float):
            self.trace.compare(self, operand)
        return plain(self, operand)

    return compare


class Length(int):
    """Integer that remembers the axes from whose lengths it was computed.

    It is exact if it was computed only by multiplication and by division without remainder.
    """

    sources: tuple[Source, ...]
    divisors: tuple[Source, ...]
    exact: bool

    @classmethod
    def of(
        cls, value: int, sources: tuple[Source, ...], divisors: tuple[Source, ...] = (), *, exact: bool = True
    ) -> "Length":
        """Return ``value`` as a ``Length`` that was computed from ``sources`` and divided by ``divisors``."""
        number = cls(value)
        number.sources, number.divisors, number.exact = sources, divisors, exact
        return number

    @property
    def trace(self) -> "Trace":
        """The ``Trace`` during which the model's code read the lengths."""
        return self.sources[0].trace

    @property
    def rows(self) -> list[Row]:
        """For each axis from which this length was computed, the positions along the axis."""
        return [source.row for source in self.sources + self.divisors]

    __add__ = __radd__ = _computed("__add__")
    __sub__, __rsub__, __neg__ = map(_computed, ("__sub__", "__rsub__", "__neg__"))
    __mul__ = __rmul__ = _computed("__mul__")
    __floordiv__, __rfloordiv__ = map(_computed, ("__floordiv__", "__rfloordiv__"))
    __mod__, __rmod__ = map(_computed, ("__mod__", "__rmod__"))
    __eq__, __ne__, __lt__ = map(_compared, ("__eq__", "__ne__", "__lt__"))
    __le__, __gt__, __ge__ = map(_compared, ("__le__", "__gt__", "__ge__"))
    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __deepcopy__(self, memo: object) -> "Length":
        return self


def is_length(number: object) -> TypeGuard[Length]:
    """Return True for an exact ``Length``. Only such a number may shrink with the rate."""
    return isinstance(number, Length) and number.exact


class Trace:
    """State of a trace of a model's code: ties between axes, and axes that are kept in full."""

    def __init__(self, place: Callable[[], str] = str) -> None:
        self.positions = Positions()
        self.reasons: Counter[str] = Counter()  # number of channels that are kept in full, by reason
        self.sliced: list[Row] = []  # axes that the code indexes or slices at a plain number
        self.arguments: object = ()  # arguments of the torch function that runs
        self._place = place  # returns the description of the layer that runs
        self.listening = False  # whether the model's own code runs, not torch's
        self.flexible: Sequence[bool] = ()  # for each axis of the next view, whether the code lets it shrink
        self._rows: dict[int, tuple[Tensor, Rows]] = {}  # by id; the tensor is stored too, so that its id is not reused

    def rows(self, tensor: Tensor) -> tuple[Row | None, ...]:
        """Return the positions of each axis of a tensor; None for an axis that is unknown or never sliced."""
        return tuple(map(self.open, self.marked_rows(tensor) or [None] * tensor.dim()))

    def marked_rows(self, tensor: Tensor) -> Rows | None:
        """Return the positions that ``mark`` has stored for a tensor, or None."""
        return self._rows[id(tensor)][1] if id(tensor) in self._rows else None

    def mark(self, rows: Rows, *tensors: Tensor) -> None:
        """Store ``rows`` as the positions of the axes of each tensor."""
        for tensor in tensors:
            self._rows[id(tensor)] = tensor, tuple(rows)

    def fresh(self, *tensors: Tensor) -> None:
        """Give each axis of ``tensors`` new positions, tied to no other axis; an axis of length 1 gets none."""
        for tensor in tensors:
            self.mark([self.positions.new(length) if length > 1 else None for length in tensor.shape], tensor)

    def open(self, row: Row | None) -> Row | None:
        """Return ``row``, the positions of an axis; None if every slice keeps all of the axis."""
        return row if row is not None and self.positions.roots(row).any() else None

    def pin(self, *rows: Row | None, why: str = "") -> None:
        """Keep the entries at the positions in ``rows`` at every rate; report ``why`` to the user."""
        for row in rows:
            channels = 0 if row is None else int(np.count_nonzero(self.positions.roots(row)))
            if channels and why:
                self.reasons[f"{why}, in {self._place()}"] += channels
            if row is not None:
                self.positions.unite(row, np.zeros(1, np.int64))

    def meet(self, *rows: Row | None) -> Row | None:
        """Require that the axes in ``rows``, all of equal length, are sliced alike; return their positions.

        If one of the axes is None (never sliced), slice none of them, and return None.
        """
        row, *rest = rows
        present = [partner for partner in rest if partner is not None]
        if row is None or len(present) < len(rest):
            self.pin(*rows)
            return None
        for partner in present:
            self.positions.unite(row, partner)
        return row

    def tie(self, row_a: Row | None, row_b: Row | None) -> None:
        """Require that two axes shrink in proportion. If one of them is None (never sliced), slice neither."""
        if row_a is None or row_b is None:
            self.pin(row_a, row_b)
            return
        roots_a, counts = np.unique(self.positions.roots(row_a), return_counts=True)
        roots_b, counts_b = np.unique(self.positions.roots(row_b), return_counts=True)
        if np.array_equal(roots_a, roots_b) and np.array_equal(counts * len(row_b), counts_b * len(row_a)):
            return  # they are in proportion
        part = math.gcd(len(row_a), len(row_b))
        for row in (row_a, row_b):
            self.positions.unite(row.reshape(-1, part), row_a[:part])

    def use(self, length: object, row: Row | None) -> None:
        """Record that the code uses a number as the length of an axis.

        The axis may shrink if the number is an exact ``Length``. Otherwise the axis is never sliced, nor are the axes
        from which the number was computed.
        """
        if isinstance(length, Length) and any(source.trace is not self for source in length.sources + length.divisors):
            raise UnsupportedLayerError(
                f"the code uses the length {int(length)} that it has kept from an earlier call (functools.lru_cache?), "
                f"so the axis of this length is unknown: clear the cache before each trace (cache_clear())"
            )
        if is_length(length):
            self.tie(row, self._variable(length))
        else:
            sources = length.rows if isinstance(length, Length) else []
            self.pin(row, *sources, why=f"the code says the length {length!r}")

    def compare(self, length: Length, operand: float) -> None:
        """Ensure that a comparison of a length with a number or another length has the same result at every rate.

        Two exact lengths are tied, so that they shrink in proportion. Otherwise, the axes from which the lengths were
        computed are never sliced. Nothing is done in two cases: in torch's own code, and for a number below 1 if the
        length is at least 1 at every rate.
        """
        if not self.listening:
            return
        if isinstance(operand, Length) and operand.trace is not self:
            operand = int(operand)  # the model's code has stored it in an earlier trace
        if isinstance(operand, Length) and length.exact and operand.exact:
            self.tie(self._variable(length), self._variable(operand))
        elif isinstance(operand, Length) or operand >= 1 or not _at_least_one(length):
            rows = length.rows + (operand.rows if isinstance(operand, Length) else [])
            self.pin(*rows, why=f"the code compares a length with {int(operand)}")

    def lengths(self, tensor: Tensor) -> tuple[int, ...]:
        """Return a tensor's shape, with ``Length`` objects for axes that may be sliced."""
        return tuple(
            length if row is None else Length.of(length, (Source(self, lambda row=row: row),))  # type: ignore[misc]
            for length, row in zip(tensor.shape, self.rows(tensor), strict=True)
        )

    def _variable(self, length: Length) -> Row | None:
        """Return the positions of the one axis with which a length shrinks; None if it never shrinks.

        Pin all other axes from which the length was computed, so that slices keep them in full.
        """
        self.pin(*(source.row for source in length.divisors))
        variable = next((s for s in reversed(length.sources) if self.open(s.row) is not None), None)
        self.pin(*(source.row for source in length.sources if source is not variable))
        return None if variable is None else variable.row


def _at_least_one(number: Length) -> bool:
    multiple = math.prod(len(source.row) for source in number.sources)
    return number.exact and not number.divisors and int(number) % multiple == 0

"""``Mix``: rates of the clients and their proportions, such as ``a1-b1-e2``."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from reprlib import repr as shown

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import LEVELS, exact_rate, level_name, rate_of

_PART = re.compile(r"(?:(?P<level>[a-z])(?P<count>\d{1,9})?|(?P<rate>\d*\.?\d+)(?:x(?P<times>\d{1,9}))?)")
_EXAMPLES = "write one like 'a1-b1-c1-d1-e1', 'a1-e9' or, with rates, '1.0x1-0.3x9'"


@dataclass(frozen=True, slots=True)
class Mix:
    """Rates of the clients, and the proportion of clients at each rate.

    A mix divides the clients into equal parts: ``a2-e2`` has two parts at level ``a`` and two at level ``e``. The order
    in the text does not matter. Proportions are not reduced, so ``a2-e2`` differs from ``a1-e1``.

    ``global_rate`` is the rate of the global model; by default the largest of ``rates``. ``idle`` is the number of
    parts for clients that do not train: in ``a1-x3``, a quarter of the clients train.
    """

    rates: tuple[float, ...]
    counts: tuple[int, ...]
    global_rate: float = 0.0  # 0 stands for the largest rate
    idle: int = 0

    def __post_init__(self) -> None:
        if not self.global_rate:
            object.__setattr__(self, "global_rate", self.rates[0])
        elif exact_rate(self.global_rate) < exact_rate(self.rates[0]):
            raise ConfigError(
                f"a global model of rate {self.global_rate:g} does not hold the largest of the mix {self}: expected "
                f"{self.rates[0]:g} or more"
            )

    @classmethod
    def parse(cls, text: "str | Mix") -> "Mix":
        """Parse a mix such as ``a1-e9``, ``1.0x1-0.3x9``, ``a1-x3`` or ``a-e`` (short for ``a1-e1``)."""
        if isinstance(text, Mix):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"the mix is {shown(text)}, which is no text; {_EXAMPLES}")
        parts = [part.strip() for part in text.split("-")]
        matches = [_PART.fullmatch(part) for part in parts]
        # "a-1" is more often a typo of "a1" than a second part of rate 1.
        wrong = [repr(part) for part, match in zip(parts, matches, strict=True) if match is None or part.isdigit()]
        if wrong:
            raise ConfigError(f"mix {text!r}: cannot read {', '.join(wrong)}; {_EXAMPLES}")
        counts: dict[float, int] = {}
        idle = 0
        for match in filter(None, matches):
            count = int(match["count"] or match["times"] or 1)
            if match["level"] == "x":
                idle += count
                continue
            try:
                rate = rate_of(match["level"] or match["rate"])
            except ConfigError as error:
                raise ConfigError(f"mix {text!r}: {error}; {_EXAMPLES}") from None
            if count == 0:
                raise ConfigError(f"mix {text!r}: {match[0]!r} has no clients; leave it out or {_EXAMPLES}")
            counts[rate] = counts.get(rate, 0) + count
        if not counts:
            raise ConfigError(f"mix {text!r}: nobody takes part; {_EXAMPLES}")
        rates = tuple(sorted(counts, reverse=True))
        return cls(rates, tuple(counts[rate] for rate in rates), idle=idle)

    def with_global_rate(self, level: str | float | None) -> "Mix":
        """Return a copy whose global model has this level or rate; '' and None change nothing."""
        return self if level is None or level == "" else replace(self, global_rate=rate_of(level))

    @property
    def all_rates(self) -> tuple[float, ...]:
        """The distinct rates of the global model and of the clients, descending."""
        return tuple(dict.fromkeys((self.global_rate, *self.rates)))

    @property
    def parts(self) -> tuple[float, ...]:
        """The rate of each part of the mix, descending; 0 for parts whose clients never train (``x3``)."""
        named = zip((*self.rates, 0.0), (*self.counts, self.idle), strict=True)
        return tuple(rate for rate, count in named for _ in range(count))

    @property
    def shares(self) -> tuple[float, ...]:
        """The fraction of the training clients at each rate, in the order of ``rates``."""
        return tuple(count / sum(self.counts) for count in self.counts)

    def mean(self, values: Mapping[float, float]) -> float:
        """Return the mean of ``values`` over the training clients; ``values`` maps each rate to a value."""
        return math.fsum(share * values[rate] for rate, share in zip(self.rates, self.shares, strict=True))

    def __str__(self) -> str:
        named = zip(map(level_name, self.rates), self.counts, strict=True)
        text = "-".join(f"{name}{'' if name in LEVELS else 'x'}{count}" for name, count in named)
        return f"{text}-x{self.idle}" if self.idle else text

"""Rates, levels, mixes of levels, and the assignment of rates to clients."""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.randomness import generator

_PART = re.compile(r"(?:(?P<level>[a-z])(?P<count>\d{1,9})?|(?P<rate>\d*\.?\d+)(?:x(?P<times>\d{1,9}))?)")
_NUMBER = re.compile(r"[+-]?(\d{1,9}/\d{1,9}|(\d{1,40}\.?\d{0,40}|\.\d{1,40})(e[+-]?\d{1,3})?)", re.IGNORECASE)
_EXAMPLES = "write one like 'a1-b1-c1-d1-e1', 'a1-e9' or, with rates, '1.0x1-0.3x9'"


def exact_fraction(number: float | str) -> Fraction:
    """Return the fraction that a number stands for: 3/10 for 0.3, and 5/6 for 0.8333333333333334 (the float 5 / 6)."""
    decimal = Fraction(str(number))
    simple = decimal.limit_denominator(1000)
    return simple if float(simple) == float(decimal) else decimal


def exact_rate(rate: float | str | Fraction) -> Fraction:
    """Return a rate as a fraction; raise ``ConfigError`` if it is not a number in (0, 1]."""
    text = str(rate).strip()
    try:
        exact = rate if isinstance(rate, Fraction) else exact_fraction(text if _NUMBER.fullmatch(text) else "none")
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{reprlib.repr(rate)} is no rate: expected a number above 0 and up to 1") from error
    if exact > 1 or not float(exact) > 0:  # as a float it must be above 0 too
        raise ConfigError(f"a rate of {rate} is not usable: expected a number above 0 and up to 1")
    return exact


LEVELS: Mapping[str, float] = MappingProxyType({"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.125, "e": 0.0625})
"""Rates of the paper's levels; each is half of the previous one (section 3.1)."""


def rate_of(level: str | float) -> float:
    """Return the rate of ``level``: a letter from a to e, or the rate itself as a number or text."""
    if isinstance(level, str) and level in LEVELS:
        return LEVELS[level]
    try:
        return float(exact_rate(level))
    except ConfigError as error:
        rates = ", ".join(f"{letter} ({rate:g})" for letter, rate in LEVELS.items())
        raise ConfigError(
            f"{reprlib.repr(level)} is no level: expected one of {rates} or a rate above 0 and up to 1"
        ) from error


def level_name(rate: float) -> str:
    """Return the letter of a rate, or the rate as text if no level has it."""
    return next((letter for letter, value in LEVELS.items() if value == rate), format(Decimal(str(rate)), "f"))


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
            raise ConfigError(f"the mix is {text!r}, which is no text; {_EXAMPLES}")
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
                raise ConfigError(f"mix {text!r}: {error}; {_EXAMPLES}") from error
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

    def rates_inside(self, rate: float) -> tuple[float, ...]:
        """Return the rates of the mix below ``rate``, descending."""
        return tuple(smaller for smaller in self.rates if smaller < rate)

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


def fixed_rate(mix: Mix, partition: int, num_partitions: int, *, capacity: float | None = None) -> float:
    """Return a client's rate under the assignment *Fix*: the same in all rounds.

    With ``capacity``, the rate is ``capacity``, but at most the global rate. Otherwise, the partitions are divided into
    equal blocks, one for each part of the mix, from the largest rate to the smallest; the last block also has the
    remainder. If there are fewer partitions than parts, the partitions are spread evenly over the parts. Partitions in
    idle parts, such as ``x3``, have rate 0.
    """
    if not 0 <= partition < num_partitions:
        raise ConfigError(f"partition {partition} of {num_partitions} does not exist: expected 0 to one less")
    if capacity is not None:
        return min(float(exact_rate(capacity)), mix.global_rate)
    parts = mix.parts
    if num_partitions < len(parts):
        intervals = max(num_partitions - 1, 1)
        return parts[(2 * partition * (len(parts) - 1) + intervals) // (2 * intervals)]
    return parts[min(partition // (num_partitions // len(parts)), len(parts) - 1)]


def dynamic_rate(mix: Mix, *, seed: int, server_round: int, partition: int, capacity: float | None = None) -> float:
    """Return a client's rate under the assignment *Dynamic*: a draw from the mix in each round.

    Rates above ``capacity`` are not drawn. Raise ``ConfigError`` if all rates are above ``capacity``.
    """
    limit = 1.0 if capacity is None else float(exact_rate(capacity))
    allowed = [(rate, count) for rate, count in zip(mix.rates, mix.counts, strict=True) if rate <= limit]
    if not allowed:
        raise ConfigError(
            f"partition {partition} can hold rate {limit:g}, but the smallest rate of the mix {mix} is "
            f"{mix.rates[-1]:g}: add a smaller rate to the mix or leave this client out"
        )
    rates, counts = zip(*allowed, strict=True)
    return float(generator(seed, "rate", server_round, partition).choices(rates, weights=counts)[0])


def grown_rate(mix: Mix, rate: float, server_round: int, growth: int) -> float:
    """Return a client's rate in a round if slices grow from the mix's smallest rate up to ``rate``.

    After every ``growth`` rounds, the next larger rate of the mix is used. With ``growth=0``, the result is ``rate``.
    """
    if not growth:
        return rate
    rates = mix.all_rates
    return min(rate, rates[max(0, len(rates) - 1 - (server_round - 1) // growth)])


def joining_rates(mix: Mix, taken: Sequence[float], number: int) -> list[float]:
    """Return the rates of ``number`` new clients under the assignment *Fix*.

    ``taken`` are the rates of earlier clients. Each new client gets the rate with the fewest clients, relative to the
    rate's proportion in the mix. If there are no earlier clients, ``fixed_rate`` gives the rates.
    """
    if not taken:
        return [fixed_rate(mix, place, number) for place in range(number)]
    clients, shares, new = Counter(taken), Counter(mix.parts), []
    for _ in range(number):
        new.append(max(shares, key=lambda rate: shares[rate] / (clients[rate] + 1)))
        clients[new[-1]] += 1
    return new

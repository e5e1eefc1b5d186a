"""Assignment of rates to clients: Fix, Dynamic, growing slices, and clients that join later."""

from collections import Counter
from collections.abc import Sequence

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.randomness import generator


def fixed_rate(mix: Mix, partition: int, num_partitions: int, *, capacity: float | None = None) -> float:
    """Return a client's rate under the assignment *Fix*: the same in all rounds.

    With ``capacity``, the rate is ``capacity``, but at most the global rate. Otherwise, the partitions are divided into
    equal blocks, one for each part of the mix, from the largest rate to the smallest; the last block also has the
    remainder. If there are fewer partitions than parts, the first partition gets the first part, the last partition
    gets the last part, and the other partitions get parts at equal distances, rounded. A single partition gets the
    first part. Partitions in idle parts, such as ``x3``, have rate 0.
    """
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

    ``taken`` are the rates of earlier clients. For each new client, the number of clients at each rate, plus 1, is
    divided by the rate's proportion in the mix; the new client gets the rate with the smallest quotient. If there are
    no earlier clients, ``fixed_rate`` gives the rates.
    """
    if not taken:
        return [fixed_rate(mix, place, number) for place in range(number)]
    clients, shares, new = Counter(taken), Counter(mix.parts), []
    for _ in range(number):
        new.append(max(shares, key=lambda rate: shares[rate] / (clients[rate] + 1)))
        clients[new[-1]] += 1
    return new

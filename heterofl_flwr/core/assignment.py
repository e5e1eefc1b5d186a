"""The assignment of rates to clients: Fix, for a whole run, and Dynamic, drawn anew each round."""

from collections import Counter
from collections.abc import Sequence

from heterofl_flwr.core.levels import Mix, exact_rate
from heterofl_flwr.core.randomness import generator
from heterofl_flwr.errors import ConfigError


def fixed_rate(mix: Mix, partition: int, num_partitions: int, *, capacity: float | None = None) -> float:
    """Return a client's rate under *Fix*: blocks of partitions in the mix's proportions.

    A client that knows its own rate (``capacity``) trains at it, or at the global rate where its own is larger. The
    others are served by ``partition``: the largest rate first, in blocks; what the division leaves over goes to the
    smallest rate. Where there are fewer partitions than parts of the mix, the rates are spread evenly from the
    largest to the smallest. Clients that take no part have rate 0.
    """
    if not 0 <= partition < num_partitions:
        raise ConfigError(f"partition {partition} of {num_partitions} does not exist: expected 0 to one less")
    if capacity is not None:
        return min(float(exact_rate(capacity)), mix.global_rate)
    parts = mix.parts
    if num_partitions < len(parts):
        last = max(num_partitions - 1, 1)
        return parts[(2 * partition * (len(parts) - 1) + last) // (2 * last)]
    return parts[min(partition // (num_partitions // len(parts)), len(parts) - 1)]


def dynamic_rate(mix: Mix, *, seed: int, server_round: int, partition: int, capacity: float | None = None) -> float:
    """Return a client's rate under *Dynamic*: drawn from the mix's proportions, anew each round.

    A client with a ``capacity`` draws among the rates that it can hold; where there is none, that is an error.
    """
    limit = 1.0 if capacity is None else float(exact_rate(capacity))
    held = [(rate, count) for rate, count in zip(mix.rates, mix.counts, strict=True) if rate <= limit]
    if not held:
        raise ConfigError(
            f"partition {partition} can hold rate {limit:g}, but the smallest rate of the mix {mix} is "
            f"{mix.rates[-1]:g}: add a smaller rate to the mix or leave this client out"
        )
    rates, counts = zip(*held, strict=True)
    return float(generator(seed, "rate", server_round, partition).choices(rates, weights=counts)[0])


def joining_rates(mix: Mix, held: Sequence[float], number: int) -> list[float]:
    """Return the rates of that many new clients under *Fix*, where the others keep the rates that they hold.

    Without others these are the rates of ``fixed_rate``. Later clients get, one by one, the rate of which the mix's
    proportions lack most; of equals the largest.
    """
    if not held:
        return [fixed_rate(mix, place, number) for place in range(number)]
    clients, shares, new = Counter(held), Counter(mix.parts), []
    for _ in range(number):
        new.append(max(shares, key=lambda rate: shares[rate] / (clients[rate] + 1)))
        clients[new[-1]] += 1
    return new

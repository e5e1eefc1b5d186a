"""Who misbehaves: how many replies of each client were refused."""

from collections import Counter
from collections.abc import Iterable

from heterofl_flwr.methods.callbacks import RoundRecord


class Tally:
    """Counts refused replies to instructions to train, by partition. Clients that fail or are late do not count.

    Attributes
    ----------
    refused : Counter[int]
        How many replies of a client were refused in the run.
    in_a_row : Counter[int]
        How many of them since its last good one.
    """

    def __init__(self) -> None:
        self.refused: Counter[int] = Counter()
        self.in_a_row: Counter[int] = Counter()

    @classmethod
    def of(cls, records: Iterable[RoundRecord]) -> "Tally":
        """Return the tally of rounds that are over, so that a run can go on from them."""
        tally = cls()
        for record in records:
            for partition in record.refused:
                tally.refuse(partition)
            for partition in record.rates.keys() - record.failures.keys():
                tally.accept(partition)
        return tally

    def refuse(self, partition: int) -> None:
        """Count a refused reply."""
        self.refused[partition] += 1
        self.in_a_row[partition] += 1

    def accept(self, partition: int) -> None:
        """Note a good reply."""
        del self.in_a_row[partition]

    def resting(self, limit: int) -> set[int]:
        """Return the clients that are not drawn any more, as they reached the limit; with 0 none are."""
        return {partition for partition, number in self.in_a_row.items() if 0 < limit <= number}

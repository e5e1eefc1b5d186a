"""Out of memory: which level, how much, and whether that was it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.methods.callbacks import RoundRecord

_SIGNS = re.compile(r"out of memory|OutOfMemory|low on memory|MemoryError|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_WANTED = re.compile(r"[Tt]ried to allocate (?P<size>[\d.]+ ?[KMGT]?i?B)")
_LEVEL = re.compile(r"\blevel (?P<level>[a-z]\b|[\d.]+)")


@dataclass(frozen=True, slots=True)
class Shortage:
    """A client had too little memory."""

    level: str
    wanted: str

    def __str__(self) -> str:
        """Name level and bytes."""
        return f"a client of level {self.level} ran out of memory; it asked for {self.wanted} more"


def in_round(record: RoundRecord) -> Shortage | None:
    """Return the shortage of a round's largest client that had one."""
    short = [
        (record.rates.get(partition, 0.0), why) for partition, why in record.failures.items() if _SIGNS.search(why)
    ]
    if not short:
        return None
    rate, why = max(short)
    return Shortage(level_name(rate) if rate else _level_in(why), _wanted_in(why))


def in_log(lines: Sequence[str]) -> Shortage | None:
    """Return the shortage that a log tells of, if any."""
    telling = [line for line in lines if _SIGNS.search(line)]
    if not telling:
        return None
    text = "\n".join(telling)
    return Shortage(_level_in(text), _wanted_in(text))


def _level_in(text: str) -> str:
    match = _LEVEL.search(text)
    return match["level"] if match else "unknown"


def _wanted_in(text: str) -> str:
    match = _WANTED.search(text)
    return match["size"] if match else "an unknown number of bytes"

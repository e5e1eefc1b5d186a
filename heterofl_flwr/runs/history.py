"""The history of a run: one round's record a line, read back as it was written."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.runs.files import append_line, to_json, write_atomic

log = logging.getLogger(__name__)


def append(path: Path, record: RoundRecord) -> None:
    """Add one round's record at the end."""
    append_line(path, to_json(record.to_json()))


def read(path: Path) -> list[RoundRecord]:
    """Return all records; a last line that was cut off, as by a power cut, is left out with a warning."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line for line in text.split("\n") if line]  # no splitlines: it also splits at what a text may contain
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(record_of(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number < len(lines):
                raise ConfigError(f"{path}, line {number} is no record of a round: {error!r}") from error
            log.warning("%s ends with an incomplete line, which is ignored", path)
    return records


def trim(path: Path, last_round: int) -> None:
    """Drop the records after a round; that round itself must be the last one left."""
    records = read(path)
    kept = [record for record in records if record.server_round <= last_round]
    found = kept[-1].server_round if kept else 0
    if found != last_round:
        raise ConfigError(f"{path} ends with round {found}, but the run is to go on after round {last_round}")
    write_atomic(path, "".join(f"{to_json(record.to_json())}\n" for record in kept).encode())


def record_of(values: Mapping[str, Any]) -> RoundRecord:
    """Return the record that ``RoundRecord.to_json`` gave, after a journey through JSON."""
    return RoundRecord(
        server_round=int(values["server_round"]),
        seconds=float(values["seconds"]),
        learning_rate=float(values["learning_rate"]),
        rates={int(partition): float(rate) for partition, rate in values["rates"].items()},
        failures=_reasons(values.get("failures", {})),
        refused=tuple(int(partition) for partition in values.get("refused", ())),
        train=_floats(values.get("train", {})),
        train_by_level={level: _floats(own) for level, own in values.get("train_by_level", {}).items()},
        evaluate=_floats(values.get("evaluate", {})),
        evaluate_by_level={level: _floats(own) for level, own in values.get("evaluate_by_level", {}).items()},
        evaluate_medians=_floats(values.get("evaluate_medians", {})),
        worst_client=None if values.get("worst_client") is None else int(values["worst_client"]),
        evaluate_failures=_reasons(values.get("evaluate_failures", {})),
        evaluate_asked=int(values.get("evaluate_asked", 0)),
        evaluate_answers=int(values.get("evaluate_answers", 0)),
        partial=tuple(str(name) for name in values.get("partial", ())),
        # Older histories claim an epsilon that counts on the chance of being drawn; it does not hold.
        privacy=_floats({name: own for name, own in values.get("privacy", {}).items() if name != "epsilon-sampled"}),
        bytes_down=int(values.get("bytes_down", 0)),
        bytes_up=int(values.get("bytes_up", 0)),
        bytes_by_level={level: int(number) for level, number in values.get("bytes_by_level", {}).items()},
        simulated_seconds=float(values.get("simulated_seconds", 0)),
        joules=float(values.get("joules", 0)),
    )


def before(records: Sequence[RoundRecord], first_round: int) -> list[RoundRecord]:
    """Return the records of the rounds before one."""
    return [record for record in records if record.server_round < first_round]


def _reasons(values: Mapping[str, Any]) -> dict[int, str]:
    return {int(partition): str(why) for partition, why in values.items()}


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}

"""Reading of ``history.jsonl``: the record of each round."""

import json
import logging
from pathlib import Path

from pydantic import TypeAdapter

from heterofl_flwr.common.errors import ConfigError, first_line
from heterofl_flwr.common.files import DAMAGED
from heterofl_flwr.federation.round_record import RoundRecord

log = logging.getLogger(__name__)

RECORD = TypeAdapter(RoundRecord)


def read_history(path: Path) -> list[RoundRecord]:
    """Return the records of all rounds. A damaged final line, as after a power cut, is left out with a warning.

    Raise ``ConfigError`` for any other damaged line.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line for line in text.split("\n") if line]  # splitlines also splits at characters that texts may have
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(RECORD.validate_python(json.loads(line)))
        except DAMAGED as error:
            if number < len(lines):
                raise ConfigError(
                    f"{path}, line {number} is no record of a round ({first_line(error)}): put back a copy of the "
                    f"file, or start the run anew in another folder"
                ) from error
            log.warning("%s ends with an incomplete line, which is ignored", path)
    return records

"""What is known of a setting."""

from dataclasses import dataclass
from typing import Any

from heterofl_flwr.settings.kinds import Flat, Kind


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a setting beside its name and type. The default is written as a run config has it."""

    default: Flat
    kind: Kind[Any]
    help: str

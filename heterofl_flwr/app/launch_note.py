"""How a run was launched, noted in its folder before it starts: a run that ends at once can go on all the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from heterofl_flwr.report.files import to_json, write_atomic

FILE = Path("logs", "launch.json")


@dataclass(frozen=True, slots=True)
class LaunchNote:
    """The number of virtual clients, and the run config."""

    clients: int
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """Return the note in a run's folder, if there is one."""
        try:
            found = json.loads((out / FILE).read_text(encoding="utf-8"))
            return cls(int(found["clients"]), dict(found.get("config", {})))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, out: Path) -> None:
        """Write the note; the folder is made with it."""
        write_atomic(out / FILE, to_json({"clients": self.clients, "config": dict(self.config)}).encode())

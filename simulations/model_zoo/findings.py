"""What was found of each model, one line of JSON each, so that an interrupted run goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.model_zoo import torchvision_models as torchvisions
from simulations.model_zoo.check import RATES, check


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A model and what ``check`` measured, or why it does not work; see ``Checked``."""

    name: str
    made: str  # on which machine, with which versions, at which commit
    size: int
    parameters: Mapping[str, int]  # the number of parameters by rate
    off: float = 0.0
    seconds: float = 0.0
    difference: float = 0.0
    explained: Sequence[str] = ()
    reason: str = ""  # empty if everything holds


def find(name: str, made: str, seed: int) -> Finding:
    """Check one model of torchvision."""
    model, inputs = torchvisions.make(name, seed)
    size = torchvisions.size_of(name)
    number = sum(parameter.numel() for parameter in model.parameters())
    try:
        found = check(model, inputs, torchvisions.ENDS)
    except (HeteroFLError, RuntimeError) as error:  # torch raises the latter where shapes do not fit
        return Finding(name=name, made=made, size=size, parameters={"1": number}, reason=str(error))
    return Finding(
        name=name,
        made=made,
        size=size,
        parameters={f"{rate:g}": found.parameters[rate] for rate in RATES},
        off=found.off,
        seconds=found.seconds,
        difference=found.difference,
        explained=found.explained,
    )


def read(path: Path) -> dict[str, Finding]:
    """Return the findings in a file by the models' names; of two of one model the later. No file, no findings."""
    findings = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            finding = Finding(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"line {number} of {path} is no finding of this command ({error}); remove it, or name another file "
                f"with --findings"
            ) from error
        findings[finding.name] = finding
    return findings


def add(path: Path, finding: Finding) -> None:
    """Append a finding to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(asdict(finding))}\n")
